// Whole numbers that come from a file: what does not fit into 64 bits is refused, instead of wrapping around to something small.
#pragma once
#include <cstdint>
#include <stdexcept>

namespace secateur {

struct Refused : std::runtime_error {  // a program that would read or write where it must not, or makes no sense
  using std::runtime_error::runtime_error;
};
void demand(bool truth, const char* what);

class Checked {
 public:
  Checked(int64_t n) : n_(n) {}
  int64_t value() const { return n_; }
  friend Checked operator+(Checked a, Checked b) { return fits(__builtin_add_overflow(a.n_, b.n_, &a.n_), a); }
  friend Checked operator-(Checked a, Checked b) { return fits(__builtin_sub_overflow(a.n_, b.n_, &a.n_), a); }
  friend Checked operator*(Checked a, Checked b) { return fits(__builtin_mul_overflow(a.n_, b.n_, &a.n_), a); }
  friend bool operator<(Checked a, Checked b) { return a.n_ < b.n_; }
  friend bool operator>(Checked a, Checked b) { return a.n_ > b.n_; }
  friend bool operator<=(Checked a, Checked b) { return a.n_ <= b.n_; }
  friend bool operator>=(Checked a, Checked b) { return a.n_ >= b.n_; }
  friend bool operator==(Checked a, Checked b) { return a.n_ == b.n_; }

 private:
  static Checked fits(bool wrapped, Checked n) {
    demand(!wrapped, "a size does not fit into 64 bits");
    return n;
  }
  int64_t n_;
};

}  // namespace secateur
