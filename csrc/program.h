// A program: operations over one arena, run in order by all threads together, with a barrier after each.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "checked.h"
#include "kernels.h"

namespace secateur {

constexpr int kMostDims = 8;
constexpr int64_t kMostFloats = int64_t(1) << 34;    // of an arena, a state, an input or output
constexpr int64_t kMostElements = int64_t(1) << 40;  // of a tensor, repeated ones counted
constexpr int64_t kMostScratch = int64_t(1) << 30;   // floats of one operation in one thread
constexpr int64_t kGuard = 1024;  // floats before and after an arena: kernels write whole registers

enum class Space : int { arena, constant, slot, state, local };  // local: every thread's own, for what lives within one stripe

struct Tensor {  // sizes and strides in floats
  Space space = Space::arena;
  int64_t id = 0;  // which constant or slot
  int64_t offset = 0;
  int rank = 0;
  int64_t shape[kMostDims] = {}, stride[kMostDims] = {};
  int64_t row_step = 0, image_step = 0;  // how it moves with the stripes; 0 elsewhere
  int64_t farthest = 0;                  // of these moves
  int64_t numel() const;
  bool in_arena() const { return space == Space::arena || space == Space::local; }  // with room for whole registers behind it
};

struct Output : Tensor {};  // one that is written: no constant, which other programs share and which may be a mapped file

using Tensors = std::initializer_list<const Tensor*>;

struct Array {  // a constant of the file; the memory belongs to somebody else
  const void* data = nullptr;
  int64_t size = 0;  // elements
  char type = 'f';   // f: float32, h: float16, b: int8, H: uint16, i: int32
};

struct Barrier {
  std::atomic<int> waiting{0}, round{0};
  void wait(int threads);
};

struct Context {
  float* arena;
  float* local;
  float* state;
  float* const* slots;
  const std::vector<Array>* constants;
  const Kernels* k;
  int64_t position;  // tokens that the caches hold already
  int thread, threads;
  std::vector<float>* scratch;
  const std::function<void(int64_t)>* outside;  // what runs elsewhere, on slots
  int64_t row = 0, image = 0;  // where the stripe begins that is computed

  const float* at(const Tensor& t) const;
  float* at(const Output& t) const;
  float* floats(Checked n) const;  // scratch of this thread
  void share(int64_t total, int64_t& from, int64_t& to, int64_t grain = 1) const;
};

struct Args {  // what an operation is made of; read with checks
  std::vector<Tensor> tensors;
  std::vector<int64_t> ints;
  std::vector<double> numbers;
  std::vector<int64_t> arrays;  // constants
  int64_t integer(size_t k) const;
  float number(size_t k) const;
  const Tensor& tensor(size_t k) const;
  Output output(size_t k) const;
};

class Program;

struct Op {
  virtual ~Op() = default;
  virtual void run(const Context& c) const = 0;
  virtual Checked scratch(const Kernels&) const { return 0; }  // the most floats that it asks a context for, if a file can make them many
  virtual bool parallel() const { return true; }  // false: only the first thread works
  virtual std::string choice() const { return ""; }
  virtual std::vector<std::vector<int>> choices(int) const { return {}; }
  virtual void choose(const Program&, const std::vector<int>&) {}
  virtual int64_t bytes() const { return 0; }
};

// The operations that follow run for stripe after stripe of rows, so that what passes between them stays in the cache: the first
// `begin` for the first stripe of a thread and of an image, the next `follow` (if there are any) for those after it. Threads share the
// stripes if the `written` floats of one, in whole registers, end before the next one's, `apart` further on.
struct Stripes final : Op {
  explicit Stripes(const Args& a);
  void run(const Context&) const override {}  // the program does it
  std::string choice() const override;
  int64_t begin, follow, images, stripes, rows, written, apart;
  int64_t ops() const { return begin + follow; }
};

class Program {
 public:
  Program(int64_t arena, int64_t local, int64_t state, std::vector<int64_t> slots, int threads, const Kernels* kernels);
  int64_t constant(Array a);
  void add(const std::string& kind, const Args& args);
  void complete() const { demand(!open_, "stripes lack operations"); }
  void run(float* const* slots, float* state, int64_t position, double* seconds = nullptr, const std::function<void(int64_t)>* outside = nullptr,
           bool alone = false);  // alone: on the caller's thread only
  // Times the choices of one product; keeps and returns the best.
  std::vector<int> tune(size_t op, int rounds);

  const Array& array(int64_t id, const char* types) const;
  // The range [low, high) of floats from t's offset that an operation touches must lie inside.
  void inside(const Tensor& t, Checked low, Checked high) const;
  // The whole tensor must; afterwards no product of its sizes, nor of a size and its stride, wraps around.
  void inside(const Tensor& t) const;
  std::string choice(size_t op) const { return ops_.at(op)->choice(); }
  int64_t bytes(size_t op) const { return ops_.at(op)->bytes(); }
  size_t size() const { return ops_.size(); }
  int64_t state_size() const { return state_; }
  const std::vector<int64_t>& slots() const { return slots_; }
  int threads() const { return open_ ? 1 : threads_; }  // that share one operation
  const Kernels* kernels() const { return kernels_; }

 private:
  void run_in(float* arena, float* const* slots, float* state, int64_t position, double* seconds, const std::function<void(int64_t)>* outside, int threads);
  void run_stripes(size_t first, const Stripes& s, const Context& c, double* seconds) const;
  float* local(float* arena, int thread) const { return arena + arena_ + (local_ + 15) / 16 * 16 * thread + kGuard * (1 + thread); }
  std::unique_ptr<float[]> borrow();
  void give_back(std::unique_ptr<float[]> arena);

  int64_t arena_, local_, state_;
  std::vector<int64_t> slots_;
  int threads_;
  const Kernels* kernels_;
  std::vector<Array> constants_;
  std::vector<std::unique_ptr<Op>> ops_;
  const Stripes* around_ = nullptr;  // the stripes that the next `open_` operations belong to
  int64_t open_ = 0;
  std::pair<bool, bool> moves_;  // whether one of them moves from row to row, from image to image
  std::vector<bool> alone_;  // operations of stripes: each is run by one thread
  std::mutex lock_;
  std::vector<std::unique_ptr<float[]>> arenas_;  // one for each call that runs at the same time
};

using Maker = std::unique_ptr<Op> (*)(const Program&, const Args&);
Maker maker_of(const std::string& kind);  // null: no such operation
Maker find_product(const std::string& kind);
Maker find_spatial(const std::string& kind);
Maker find_tensor(const std::string& kind);
Maker find_sequence(const std::string& kind);
template <class T>
std::unique_ptr<Op> make(const Program& program, const Args& args) {
  return std::make_unique<T>(program, args);
}

// Checks rows of `m.rows` by `m.columns` with so many values in a form (0: all columns, 1: sparse, 2: halves) whose arrays begin at number
// `at`, and lets `m` read them. Returns the number after the last of them.
size_t set_rows(Gemv& m, int64_t form, const Program& program, const Args& a, size_t at, int64_t values);

// Dimensions of several tensors walked together: size-1 ones dropped, mergeable ones merged, ordered by the first one's strides.
struct Walk {
  int rank = 0, operands = 0;
  int64_t shape[kMostDims] = {}, stride[4][kMostDims] = {};
  Walk() = default;
  Walk(Tensors tensors);
  int64_t outer() const;  // how many runs of the innermost dimension
  void at(int64_t index, int64_t* offsets) const;
  int64_t inner() const { return rank ? shape[rank - 1] : 1; }
  int64_t step(int operand) const { return rank ? stride[operand][rank - 1] : 1; }
};

// Runs `from` to `to` of a walk, one after the other: divisions, which are slow, only where a dimension ends.
struct Runs {
  const Walk& walk;
  int64_t index, end, row, rows, offsets[4];
  Runs(const Walk& walk_, int64_t from, int64_t to) : walk(walk_), index(from), end(to), rows(walk_.rank > 1 ? walk_.shape[walk_.rank - 2] : 1) {
    row = from ? from % rows : 0;
    walk.at(from, offsets);
  }
  bool more() const { return index < end; }
  void next() {
    if (++index == end) return;
    if (++row == rows) row = 0, walk.at(index, offsets);
    else for (int o = 0; o < walk.operands; o++) offsets[o] += walk.stride[o][walk.rank - 2];
  }
};

}  // namespace secateur
