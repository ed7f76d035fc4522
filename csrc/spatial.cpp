// Operations on planes: channel c of image n is a block of rows at a pitch, with room for zeros around it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "program.h"

namespace secateur {
namespace {

void demand_planes(const Tensor& t) {
  demand(t.rank == 4 && (t.stride[3] == 1 || t.shape[3] == 1), "planes need four dimensions and neighbouring columns");
}

// Splits planes into the sy * sx interleaved ones that a strided convolution reads. tensors: x, y [N, C * sy * sx, H', W'];
// ints: sy, sx. What lies beyond x is zero.
class Phases final : public Op {
 public:
  Phases(const Program&, const Args& a) : x_(a.tensor(0)), y_(a.output(1)), sy_(a.integer(0)), sx_(a.integer(1)) {
    demand_planes(x_), demand_planes(y_);
    demand(sy_ > 0 && sx_ > 0 && sy_ < 64 && sx_ < 64 && x_.shape[0] == y_.shape[0] && x_.shape[1] * sy_ * sx_ == y_.shape[1], "phases do not match");
  }
  void run(const Context& c) const override {
    int64_t from, to, phases = sy_ * sx_;
    c.share(x_.shape[0] * x_.shape[1], from, to);
    for (int64_t i = from; i < to; i++) {
      int64_t n = i / x_.shape[1], ch = i % x_.shape[1];
      const float* x = c.at(x_) + n * x_.stride[0] + ch * x_.stride[1];
      for (int64_t p = 0; p < phases; p++) {
        float* y = c.at(y_) + n * y_.stride[0] + (ch * phases + p) * y_.stride[1];
        int64_t row = p / sx_, column = p % sx_, wide = column < x_.shape[3] ? std::min(y_.shape[3], (x_.shape[3] - column + sx_ - 1) / sx_) : 0;
        const float* source = x + row * x_.stride[2] + column * x_.stride[3];
        for (int64_t r = 0; r < y_.shape[2]; r++, y += y_.stride[2], source += sy_ * x_.stride[2], row += sy_) {
          int64_t there = row < x_.shape[2] ? wide : 0;
          if (!there) {}  // and `source` may point to nothing
          else if (sx_ == 1 && x_.stride[3] == 1) std::memcpy(y, source, size_t(there) * 4);
          else if (sx_ == 2 && x_.stride[3] == 1) c.k->evens(source, y, there);
          else for (int64_t k = 0; k < there; k++) y[k] = source[k * sx_ * x_.stride[3]];
          for (int64_t k = there; k < y_.shape[3]; k++) y[k] = 0;
        }
      }
    }
  }

 private:
  Tensor x_;
  Output y_;
  int64_t sy_, sx_;
};

// A few zeros, by stores that may overlap: a call of memset costs more than they do.
inline void few_zeros(float* p, int64_t n) {
  static const float zeros[4] = {};
  auto four = [](float* at) { std::memcpy(at, zeros, sizeof zeros); };
  if (n > 32) std::memset(p, 0, size_t(n) * 4);
  else if (n >= 4) {
    four(p), four(p + n - 4);
    if (n > 8) four(p + 4), four(p + n - 8);
    if (n > 16) four(p + 8), four(p + 12), four(p + n - 16), four(p + n - 12);
  } else for (int64_t k = 0; k < n; k++) p[k] = 0;
}

// Zeros around planes: `lead` floats before, the gap after each row, the rows between images, `tail` floats after.
// Of a stripe also the rows beyond the image: row k is the image's row `first + ratio * (the stripe's row) + k`.
// tensors: y [N, C, H, W]; ints: lead, tail, rows from image to image, [first, ratio, rows of the image].
class Border final : public Op {
 public:
  Border(const Program& program, const Args& a) : y_(a.output(0)), lead_(a.integer(0)), tail_(a.integer(1)), rows_(a.integer(2)) {
    demand_planes(y_);
    if (a.ints.size() > 3) {
      first_ = a.integer(3), ratio_ = a.integer(4), height_ = a.integer(5);
      demand(std::abs(first_) < (1 << 24) && ratio_ >= 0 && ratio_ < (1 << 24) && height_ >= 0, "an impossible border");
    }
    demand(lead_ >= 0 && tail_ >= 0 && rows_ >= y_.shape[2] && y_.stride[2] >= y_.shape[3] && rows_ < (1 << 24), "an impossible border");
    demand(y_.shape[0] == 1 || y_.stride[0] == rows_ * y_.stride[2], "images do not follow each other");
    Checked images = Checked(y_.shape[0]) * rows_ * y_.stride[2] + tail_;
    demand(y_.shape[1] == 1 || images + lead_ <= y_.stride[1], "channels lie too close together");
    program.inside(y_, -lead_, Checked(y_.shape[1] - 1) * y_.stride[1] + images);
  }
  void run(const Context& c) const override {
    int64_t from, to, pitch = y_.stride[2], width = y_.shape[3], gap = pitch - width;
    c.share(y_.shape[1], from, to);
    for (int64_t ch = from; ch < to; ch++) {
      float* plane = c.at(y_) + ch * y_.stride[1];
      few_zeros(plane - lead_, lead_);
      for (int64_t n = 0; n < y_.shape[0]; n++, plane += rows_ * pitch) {
        for (int64_t r = 0; r < y_.shape[2] && height_ >= 0; r++) {
          int64_t row = first_ + ratio_ * c.row + r;
          if (row < 0 || row >= height_) few_zeros(plane + r * pitch, width);
        }
        if (gap == 1) for (int64_t r = 0; r < y_.shape[2]; r++) plane[r * pitch + width] = 0;
        else for (int64_t r = 0; r < y_.shape[2]; r++) few_zeros(plane + r * pitch + width, gap);
        few_zeros(plane + y_.shape[2] * pitch, (rows_ - y_.shape[2]) * pitch);
      }
      few_zeros(plane, tail_);
    }
  }

 private:
  Output y_;
  int64_t lead_, tail_, rows_, first_ = 0, ratio_ = 0, height_ = -1;
};

// tensors: x, y; ints: kernel h, w, stride, pad top, left, dilation y, x; numbers: low, high; arrays: weights, bias.
class DepthwiseOp final : public Op {
 public:
  DepthwiseOp(const Program& program, const Args& a) : x_(a.tensor(0)), y_(a.output(1)), top_(a.integer(3)), left_(a.integer(4)), low_(a.number(0)), high_(a.number(1)) {
    demand_planes(x_), demand_planes(y_);
    demand(x_.shape[0] == y_.shape[0] && x_.shape[1] == y_.shape[1], "a depthwise convolution keeps its channels");
    demand(x_.in_arena() && y_.in_arena(), "a depthwise convolution needs the arena");  // whole registers
    for (const Tensor* t : Tensors{&x_, &y_})
      for (int d = 0; d < 3; d++) demand(t->shape[d] == 1 || t->stride[d] > 0, "planes run backwards");
    demand(y_.shape[2] <= INT32_MAX && y_.shape[3] <= INT32_MAX, "planes are too large for a depthwise convolution");
    for (size_t k = 0; k < 7; k++) demand(a.integer(k) >= 0 && a.integer(k) < 4096, "an impossible kernel size");
    d_ = {x_.stride[2], int32_t(a.integer(0)), int32_t(a.integer(1)), int32_t(a.integer(2)), int32_t(a.integer(5)), int32_t(a.integer(6)),
          int32_t(y_.shape[2]), int32_t(y_.shape[3]), y_.stride[2], 0};
    demand(d_.height > 0 && d_.width > 0 && d_.stride > 0 && x_.stride[2] > 0, "an impossible kernel size");
    const Array &w = program.array(a.arrays.at(0), "f"), &b = program.array(a.arrays.at(1), "f");
    demand(Checked(y_.shape[1]) * d_.height * d_.width == w.size && b.size == y_.shape[1], "a depthwise convolution has another number of weights");
    weights_ = static_cast<const float*>(w.data), bias_ = static_cast<const float*>(b.data);
    Checked first = Checked(-top_) * d_.pitch - left_, channels = Checked(x_.shape[1] - 1) * x_.stride[1];
    Checked end = first + Checked(d_.height - 1) * d_.dilation_y * d_.pitch + Checked(d_.width - 1) * d_.dilation_x + channels;
    if (d_.stride == 1) {
      demand(d_.pitch == d_.out_pitch && (x_.shape[0] == 1 || x_.stride[0] == y_.stride[0]), "a depthwise convolution needs equal pitches");
      d_.span = (y_.shape[0] - 1) * y_.stride[0] + (y_.shape[2] - 1) * d_.pitch + y_.shape[3];
      demand((d_.span + 15) / 16 * 16 <= y_.stride[1] || y_.shape[1] == 1, "channels lie too close together");
      program.inside(x_, first, end + d_.span);
    } else {
      Checked rows = Checked(y_.shape[2] - 1) * d_.stride * d_.pitch, columns = Checked(y_.shape[3] - 1) * d_.stride;
      program.inside(x_, first, end + Checked(x_.shape[0] - 1) * x_.stride[0] + rows + columns + 1);
    }
  }
  void run(const Context& c) const override {
    int64_t from, to, images = d_.stride == 1 ? 1 : x_.shape[0];
    c.share(x_.shape[1], from, to);
    for (int64_t ch = from; ch < to; ch++)
      for (int64_t n = 0; n < images; n++)
        c.k->depthwise(d_, c.at(x_) + n * x_.stride[0] + ch * x_.stride[1] - top_ * d_.pitch - left_, weights_ + ch * d_.height * d_.width, bias_[ch],
                       low_, high_, c.at(y_) + n * y_.stride[0] + ch * y_.stride[1]);
  }
  std::string choice() const override { return "depthwise"; }

 private:
  Tensor x_;
  Output y_;
  int64_t top_, left_;
  float low_, high_;
  Depthwise d_;
  const float *weights_, *bias_;
};

// tensors: x, y; ints: kernel h, w, stride y, x, pad y, x, dilation y, x, is max, counts padding, divisor (0: the window).
class Pool final : public Op {
 public:
  Pool(const Program& program, const Args& a) : x_(a.tensor(0)), y_(a.output(1)), height_(x_.shape[2]) {
    demand_planes(x_), demand_planes(y_);
    demand(x_.shape[0] == y_.shape[0] && x_.shape[1] == y_.shape[1] && a.ints.size() >= 11, "pooling keeps channels");
    for (int k = 0; k < 11; k++) {
      p_[k] = a.integer(k);
      demand(p_[k] >= 0 && p_[k] < 65536, "an impossible window");
    }
    demand(p_[0] && p_[1] && p_[2] && p_[3] && p_[6] && p_[7], "an impossible window");
    if (a.ints.size() == 11) return;
    first_ = a.integer(11), ratio_ = a.integer(12), height_ = a.integer(13);
    demand(std::abs(first_) < (1 << 24) && ratio_ >= 0 && ratio_ < (1 << 24) && height_ >= 0 && height_ < (1 << 24), "an impossible stripe");
    Checked down = Checked(y_.shape[2] - 1) * p_[2] + (p_[0] - 1) * p_[6] - p_[4], channels = Checked(x_.shape[1] - 1) * x_.stride[1];
    demand(x_.shape[0] == 1 && x_.stride[1] >= 0 && x_.stride[2] >= 0 && down.value() >= 0, "an impossible stripe");
    program.inside(x_, Checked(-p_[4]) * x_.stride[2], channels + down * x_.stride[2] + x_.shape[3]);
  }
  Checked scratch(const Kernels&) const override { return Checked(padded()) + y_.shape[3]; }
  void run(const Context& c) const override {
    int64_t from, to;
    c.share(x_.shape[0] * x_.shape[1], from, to);
    for (int64_t i = from; i < to; i++) {
      int64_t n = i / x_.shape[1], ch = i % x_.shape[1];
      plane(c, c.at(x_) + n * x_.stride[0] + ch * x_.stride[1], c.at(y_) + n * y_.stride[0] + ch * y_.stride[1]);
    }
  }

 private:
  int64_t padded() const {  // no wrapping: sizes have 34 bits, the rest 16
    return std::max(x_.shape[3] + 2 * p_[5], (y_.shape[3] - 1) * p_[3] + (p_[1] - 1) * p_[7] + 1);
  }
  void plane(const Context& c, const float* x, float* y) const {
    auto [kh, kw, sy, sx, py, px, dy, dx, is_max, counts, divisor] = p_;
    int64_t width = x_.shape[3], out = y_.shape[3], full = padded(), top = first_ + ratio_ * c.row;
    float *row = c.floats(scratch(*c.k)), *picked = row + full, fill = is_max ? -std::numeric_limits<float>::infinity() : 0.0f;
    Pair how = is_max ? Pair::max : Pair::add;
    for (int64_t oy = 0; oy < y_.shape[2]; oy++, y += y_.stride[2]) {
      std::fill_n(row, full, fill);
      int64_t rows = 0, counted = 0;
      for (int64_t ky = 0; ky < kh; ky++) {
        int64_t r = oy * sy + ky * dy - py;
        counted += r + top >= -py && r + top < height_ + py;
        if (r + top < 0 || r + top >= height_) continue;
        rows++;
        c.k->pair(how, row + px, 1, x + r * x_.stride[2], 1, row + px, width);
      }
      for (int64_t kx = 0; kx < kw; kx++) {
        const float* shifted = row + kx * dx;
        if (sx == 2) c.k->evens(shifted, picked, out), shifted = picked;
        else if (sx > 2) {
          for (int64_t k = 0; k < out; k++) picked[k] = shifted[k * sx];
          shifted = picked;
        }
        if (kx == 0) std::memcpy(y, shifted, size_t(out) * 4);
        else c.k->pair(how, y, 1, shifted, 1, y, out);
      }
      if (is_max) continue;
      for (int64_t ox = 0; ox < out; ox++) {
        int64_t columns = 0;
        for (int64_t kx = 0; kx < kw; kx++) {
          int64_t col = ox * sx + kx * dx - px;
          columns += counts ? col < width + px : col >= 0 && col < width;
        }
        y[ox] /= float(divisor ? divisor : std::max<int64_t>(1, (counts ? counted : rows) * columns));
      }
    }
  }
  Tensor x_;
  Output y_;
  int64_t first_ = 0, ratio_ = 0, height_;
  std::array<int64_t, 11> p_;
};

// Every pixel of y is a weighted sum of a few pixels of x: nearest and bilinear upsampling, reflection and replication padding, flips.
// tensors: x, y; ints: how many; arrays: row of x, column of x (both [many, H', W']; row -1: zero), [weights, the same shape].
class Resample final : public Op {
 public:
  Resample(const Program& program, const Args& a) : x_(a.tensor(0)), y_(a.output(1)), many_(a.integer(0)) {
    demand_planes(x_), demand_planes(y_);
    pixels_ = y_.shape[2] * y_.shape[3];
    const Array &rows = program.array(a.arrays.at(0), "i"), &columns = program.array(a.arrays.at(1), "i");
    demand(many_ > 0 && many_ < 64 && rows.size == many_ * pixels_ && columns.size == rows.size, "resampling has another number of pixels");
    demand(x_.shape[0] == y_.shape[0] && x_.shape[1] == y_.shape[1], "resampling keeps channels");
    places_.resize(rows.size);
    for (int64_t k = 0; k < rows.size; k++) {
      int32_t r = static_cast<const int32_t*>(rows.data)[k], col = static_cast<const int32_t*>(columns.data)[k];
      demand(r >= -1 && r < x_.shape[2] && col >= 0 && col < x_.shape[3], "resampling reads outside of its input");
      places_[k] = r < 0 ? -1 : r * x_.stride[2] + col * x_.stride[3];
    }
    weights_ = nullptr;
    if (a.arrays.size() > 2) {
      const Array& w = program.array(a.arrays[2], "f");
      demand(w.size == rows.size, "resampling has another number of weights");
      weights_ = static_cast<const float*>(w.data);
    }
  }
  void run(const Context& c) const override {
    int64_t from, to;
    c.share(x_.shape[0] * x_.shape[1], from, to);
    for (int64_t i = from; i < to; i++) {
      int64_t n = i / x_.shape[1], ch = i % x_.shape[1];
      const float* x = c.at(x_) + n * x_.stride[0] + ch * x_.stride[1];
      float* y = c.at(y_) + n * y_.stride[0] + ch * y_.stride[1];
      for (int64_t k = 0, r = 0; r < y_.shape[2]; r++)
        for (int64_t col = 0; col < y_.shape[3]; col++, k++) {
          float total = 0;
          for (int64_t m = 0; m < many_; m++) {
            int64_t p = places_[m * pixels_ + k];
            if (p >= 0) total += weights_ ? weights_[m * pixels_ + k] * x[p] : x[p];
          }
          y[r * y_.stride[2] + col * y_.stride[3]] = total;
        }
    }
  }

 private:
  Tensor x_;
  Output y_;
  int64_t many_, pixels_;
  std::vector<int64_t> places_;
  const float* weights_;
};

}  // namespace

Maker find_spatial(const std::string& kind) {
  if (kind == "phases") return make<Phases>;
  if (kind == "border") return make<Border>;
  if (kind == "depthwise") return make<DepthwiseOp>;
  if (kind == "pool") return make<Pool>;
  if (kind == "resample") return make<Resample>;
  return nullptr;
}

}  // namespace secateur
