// Operations on tensors of any layout: copies, elementwise functions, reductions, norms, softmax, lookups, small matrix products.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "program.h"

namespace secateur {
namespace {

// tensors: x, y of one shape. Transposes go through tiles, so that both sides are read and written in whole cache lines.
class Copy final : public Op {
 public:
  Copy(const Program&, const Args& a) : x_(a.tensor(0)), y_(a.output(1)), walk_({&y_, &x_}) {
    for (int d = 0; d + 1 < walk_.rank; d++)
      if (walk_.stride[1][d] == 1 && walk_.step(1) != 1 && walk_.step(0) == 1) turned_ = d;
  }
  void run(const Context& c) const override {
    const float* x = c.at(x_);
    float* y = c.at(y_);
    int64_t from, to, inner = walk_.inner();
    if (turned_ >= 0) return tiles(c, x, y);
    c.share(walk_.outer(), from, to);
    for (Runs at(walk_, from, to); at.more(); at.next()) {
      float* out = y + at.offsets[0];
      const float* in = x + at.offsets[1];
      if (walk_.step(0) == 1 && walk_.step(1) == 1) std::memmove(out, in, size_t(inner) * 4);  // rows that two stripes share may overlap
      else if (walk_.step(0) == 1 && walk_.step(1) == 0) std::fill_n(out, inner, *in);
      else if (walk_.step(0) == 1 && walk_.step(1) == 2) c.k->evens(in, out, inner);
      else
        for (int64_t k = 0; k < inner; k++) out[k * walk_.step(0)] = in[k * walk_.step(1)];
    }
  }

 private:
  void tiles(const Context& c, const float* x, float* y) const {
    Walk rest = walk_;
    int64_t columns = walk_.inner(), rows = walk_.shape[turned_], y_row = walk_.stride[0][turned_], x_column = walk_.step(1);
    rest.shape[turned_] = (rows + 15) / 16;
    rest.stride[0][turned_] *= 16, rest.stride[1][turned_] *= 16;
    int64_t from, to, offsets[4];
    c.share(rest.outer(), from, to);
    for (int64_t i = from; i < to; i++) {
      rest.at(i, offsets);
      int64_t strip = i;
      for (int d = walk_.rank - 2; d > turned_; d--) strip /= rest.shape[d];
      strip %= rest.shape[turned_];
      int64_t high = std::min<int64_t>(16, rows - strip * 16);
      const float* in = x + offsets[1];
      float* out = y + offsets[0];
      for (int64_t k = 0; k < columns; k += 16) {
        int64_t wide = std::min<int64_t>(16, columns - k);
        float tile[16][16];
        for (int64_t b = 0; b < wide; b++)
          for (int64_t r = 0; r < high; r++) tile[r][b] = in[(k + b) * x_column + r];
        for (int64_t r = 0; r < high; r++) std::memcpy(out + r * y_row + k, tile[r], size_t(wide) * 4);
      }
    }
  }
  Tensor x_;
  Output y_;
  Walk walk_;
  int turned_ = -1;
};

// tensors: x, y; ints: act; numbers: a, b.
class Unary final : public Op {
 public:
  Unary(const Program&, const Args& a) : x_(a.tensor(0)), y_(a.output(1)), act_(Act(a.integer(0))), a_(a.number(0)), b_(a.number(1)), walk_({&y_, &x_}) {
    demand(a.integer(0) >= 0 && a.integer(0) < int64_t(Act::last), "an unknown activation");
  }
  void run(const Context& c) const override {
    constexpr int64_t kPiece = 4096;
    int64_t from, to, inner = walk_.inner(), pieces = (inner + kPiece - 1) / kPiece, offsets[4];
    c.share(walk_.outer() * pieces, from, to);
    for (int64_t i = from; i < to; i++) {
      walk_.at(i / pieces, offsets);
      int64_t start = i % pieces * kPiece, n = std::min(kPiece, inner - start);
      const float* x = c.at(x_) + offsets[1] + start * walk_.step(1);
      float* y = c.at(y_) + offsets[0] + start * walk_.step(0);
      if (walk_.step(0) == 1 && walk_.step(1) == 1) {
        c.k->act(act_, a_, b_, x, y, n);
        continue;
      }
      float* held = c.floats(n);
      for (int64_t k = 0; k < n; k++) held[k] = x[k * walk_.step(1)];
      c.k->act(act_, a_, b_, held, held, n);
      for (int64_t k = 0; k < n; k++) y[k * walk_.step(0)] = held[k];
    }
  }

 private:
  Tensor x_;
  Output y_;
  Act act_;
  float a_, b_;
  Walk walk_;
};

// tensors: x, y (already of out's shape, stride 0 where broadcast), out; ints: what; numbers: low, high (limits afterwards).
class Binary final : public Op {
 public:
  Binary(const Program&, const Args& a) : x_(a.tensor(0)), y_(a.tensor(1)), out_(a.output(2)), how_(Pair(a.integer(0))), low_(a.number(0)), high_(a.number(1)), walk_({&out_, &x_, &y_}) {
    demand(a.integer(0) >= 0 && a.integer(0) < int64_t(Pair::last), "an unknown operation on two tensors");
    limited_ = low_ > -std::numeric_limits<float>::infinity() || high_ < std::numeric_limits<float>::infinity();
  }
  void run(const Context& c) const override {
    constexpr int64_t kPiece = 4096;
    int64_t from, to, inner = walk_.inner(), pieces = (inner + kPiece - 1) / kPiece, offsets[4];
    int64_t so = walk_.step(0), sx = walk_.step(1), sy = walk_.step(2);
    c.share(walk_.outer() * pieces, from, to);
    for (int64_t i = from; i < to; i++) {
      walk_.at(i / pieces, offsets);
      int64_t start = i % pieces * kPiece, n = std::min(kPiece, inner - start);
      const float *x = c.at(x_) + offsets[1] + start * sx, *y = c.at(y_) + offsets[2] + start * sy;
      float *out = c.at(out_) + offsets[0] + start * so, *held = c.floats(3 * n), *to_ = so == 1 ? out : held + 2 * n;
      int64_t step_x = sx, step_y = sy;
      if (sx > 1 || sx < 0) {
        for (int64_t k = 0; k < n; k++) held[k] = x[k * sx];
        x = held, step_x = 1;
      }
      if (sy > 1 || sy < 0) {
        for (int64_t k = 0; k < n; k++) held[n + k] = y[k * sy];
        y = held + n, step_y = 1;
      }
      c.k->pair(how_, x, step_x, y, step_y, to_, n);
      if (limited_) c.k->act(Act::clip, low_, high_, to_, to_, n);
      if (so != 1)
        for (int64_t k = 0; k < n; k++) out[k * so] = to_[k];
    }
  }

 private:
  Tensor x_, y_;
  Output out_;
  Pair how_;
  float low_, high_;
  bool limited_;
  Walk walk_;
};

// out = condition != 0 ? x : y. tensors: condition, x, y, out.
class Where final : public Op {
 public:
  Where(const Program&, const Args& a) : c_(a.tensor(0)), x_(a.tensor(1)), y_(a.tensor(2)), out_(a.output(3)), walk_({&out_, &c_, &x_, &y_}) {}
  void run(const Context& c) const override {
    int64_t from, to, inner = walk_.inner(), so = walk_.step(0), sc = walk_.step(1), sx = walk_.step(2), sy = walk_.step(3);
    c.share(walk_.outer(), from, to);
    for (Runs at(walk_, from, to); at.more(); at.next()) {
      const float *condition = c.at(c_) + at.offsets[1], *x = c.at(x_) + at.offsets[2], *y = c.at(y_) + at.offsets[3];
      float* out = c.at(out_) + at.offsets[0];
      for (int64_t k = 0; k < inner; k++) out[k * so] = condition[k * sc] != 0 ? x[k * sx] : y[k * sy];
    }
  }

 private:
  Tensor c_, x_, y_;
  Output out_;
  Walk walk_;
};

// tensors: x, y (of x's shape, stride 0 along what is reduced); ints: 0 sum, 1 mean, 2 max, 3 min.
class Reduce final : public Op {
 public:
  Reduce(const Program&, const Args& a) : x_(a.tensor(0)), how_(a.integer(0)) {
    Output y = a.output(1);
    demand(y.rank == x_.rank && how_ >= 0 && how_ < 4, "an unknown reduction");
    kept_y_ = y, kept_x_ = x_, gone_ = x_;
    kept_y_.rank = kept_x_.rank = gone_.rank = 0;
    for (int d = 0; d < x_.rank; d++) {
      demand(y.shape[d] == x_.shape[d], "shapes differ");
      bool gone = y.stride[d] == 0 && y.shape[d] > 1;
      Tensor& to = gone ? gone_ : kept_x_;
      to.shape[to.rank] = x_.shape[d], to.stride[to.rank++] = x_.stride[d];
      if (!gone) kept_y_.shape[kept_y_.rank] = y.shape[d], kept_y_.stride[kept_y_.rank++] = y.stride[d];
    }
  }
  Checked scratch(const Kernels&) const override { return 2 * Walk({&kept_y_, &kept_x_}).inner(); }
  void run(const Context& c) const override {
    Walk kept({&kept_y_, &kept_x_}), gone({&gone_});
    bool along = gone.step(0) == 1;  // neighbours are reduced into one number; else runs are added to runs
    int64_t from, to, o[4], g[4], lines = gone.outer(), runs = kept.outer() * (along ? kept.inner() : 1);
    float factor = how_ == 1 ? 1.0f / float(gone_.numel()) : 1.0f;
    c.share(runs, from, to);
    for (int64_t i = from; i < to; i++) {
      kept.at(along ? i / kept.inner() : i, o);
      const float* x = c.at(x_) + o[1];
      float* y = c.at(kept_y_) + o[0];
      if (along) {
        x += i % kept.inner() * kept.step(1), y += i % kept.inner() * kept.step(0);
        float total = how_ < 2 ? 0 : how_ == 2 ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity();
        if (how_ < 2 && gone.rank < 3 && x_.in_arena()) total = c.k->total_lines(x, gone.rank == 2 ? gone.stride[0][0] : 0, lines, gone.inner());
        else for (Runs at(gone, 0, lines); at.more(); at.next()) {
          const float* line = x + at.offsets[0];
          if (how_ < 2) total += c.k->total(line, gone.inner());
          else for (int64_t j = 0; j < gone.inner(); j++) {
            float v = line[j];
            if (v != v || (how_ == 2 ? v > total : v < total)) total = v;
          }
        }
        *y = total * factor;
        continue;
      }
      int64_t n = kept.inner(), sx = kept.step(1), sy = kept.step(0), reduced = gone.outer() * gone.inner();
      float* held = c.floats(2 * n);
      for (int64_t k = 0; k < reduced; k++) {
        gone.at(k / gone.inner(), g);
        const float* row = x + g[0] + k % gone.inner() * gone.step(0);
        if (sx != 1 || k == 0) {
          float* at = k == 0 ? held : held + n;
          for (int64_t j = 0; j < n; j++) at[j] = row[j * sx];
          if (k == 0) continue;
          row = at;
        }
        c.k->pair(how_ < 2 ? Pair::add : how_ == 2 ? Pair::max : Pair::min, held, 1, row, 1, held, n);
      }
      for (int64_t j = 0; j < n; j++) y[j * sy] = held[j] * factor;
    }
  }

 private:
  Tensor x_, kept_x_, gone_;
  Output kept_y_;
  int64_t how_;
};

// What Norm and Softmax share: the last dimension against all others.
struct Lines {
  Tensor x;
  Output y;
  Walk walk{};
  int64_t length, sx, sy;
  bool rows, columns;
  Lines(const Tensor& x_, const Output& y_) : x(x_), y(y_) {
    demand(x.rank == y.rank && x.rank > 0, "shapes differ");
    int last = x.rank - 1;
    demand(x.shape[last] == y.shape[last], "shapes differ");
    length = x.shape[last], sx = x.stride[last], sy = y.stride[last];
    Tensor xs = x, ys = y;
    xs.rank = ys.rank = last;
    walk = Walk({&ys, &xs});
    columns = walk.rank && walk.step(0) == 1 && walk.step(1) == 1 && !(sx == 1 && sy == 1);
    rows = !columns;
  }
  Checked scratch(const Kernels& k) const { return columns ? Checked(length) * 2 * k.width : length; }
  // Calls column(x, y, strides, n) on pieces of neighbouring positions, or row(x, y) on contiguous copies.
  template <class C, class R>
  void run(const Context& c, C column, R row) const {
    int64_t from, to, o[4], inner = walk.inner(), width = 2 * c.k->width;
    if (columns) {
      int64_t pieces = (inner + width - 1) / width;
      c.share(walk.outer() * pieces, from, to);
      for (int64_t i = from; i < to; i++) {
        walk.at(i / pieces, o);
        int64_t start = i % pieces * width, n = std::min(width, inner - start);
        const float* in = c.at(x) + o[1] + start;
        float* out = c.at(y) + o[0] + start;
        if (n == width) {
          column(in, sx, out, sy, n);
          continue;
        }
        float* held = c.floats(scratch(*c.k));  // whole registers would write over the neighbours
        for (int64_t k = 0; k < length; k++) {
          std::memcpy(held + k * width, in + k * sx, size_t(n) * 4);
          std::fill(held + k * width + n, held + (k + 1) * width, 0.0f);
        }
        column(held, width, held, width, width);
        for (int64_t k = 0; k < length; k++) std::memcpy(out + k * sy, held + k * width, size_t(n) * 4);
      }
      return;
    }
    c.share(walk.outer() * inner, from, to);
    for (int64_t i = from; i < to; i++) {
      walk.at(i / inner, o);
      const float* in = c.at(x) + o[1] + i % inner * walk.step(1);
      float *out = c.at(y) + o[0] + i % inner * walk.step(0), *held = sy == 1 ? out : c.floats(length);
      if (sx == 1) std::memmove(held, in, size_t(length) * 4);
      else for (int64_t k = 0; k < length; k++) held[k] = in[k * sx];
      row(held);
      if (held != out)
        for (int64_t k = 0; k < length; k++) out[k * sy] = held[k];
    }
  }
};

// Layer norm and RMS norm over the last dimension. tensors: x, y; ints: centred, has weight, has bias; numbers: eps; arrays: [weight], [bias].
class Norm final : public Op {
 public:
  Norm(const Program& program, const Args& a) : lines_(a.tensor(0), a.output(1)), centred_(a.integer(0)), eps_(a.number(0)) {
    size_t next = 0;
    for (int k = 0; k < 2; k++) {
      if (!a.integer(1 + k)) continue;
      const Array& one = program.array(a.arrays.at(next++), "f");
      demand(one.size == lines_.length, "a norm has another number of weights");
      (k ? bias_ : weight_) = static_cast<const float*>(one.data);
    }
  }
  Checked scratch(const Kernels& k) const override { return lines_.scratch(k); }
  void run(const Context& c) const override {
    lines_.run(
        c,
        [&](const float* x, int64_t sx, float* y, int64_t sy, int64_t n) {
          c.k->norm_columns(x, sx, lines_.length, weight_, bias_, eps_, centred_, y, sy, n);
        },
        [&](float* x) {
          int64_t n = lines_.length;
          float mean = centred_ ? c.k->total(x, n) / float(n) : 0.0f, rest = 0.0f;
          float spread = c.k->squares(x, mean, n, &rest) / float(n), off = centred_ ? rest / float(n) : 0.0f;
          float scale = 1.0f / std::sqrt(std::max(spread - off * off, 0.0f) + eps_);
          c.k->act(Act::affine, 1.0f, -(mean + off), x, x, n);
          c.k->act(Act::affine, scale, 0.0f, x, x, n);
          if (weight_) c.k->pair(Pair::mul, x, 1, weight_, 1, x, n);
          if (bias_) c.k->pair(Pair::add, x, 1, bias_, 1, x, n);
        });
  }

 private:
  Lines lines_;
  bool centred_;
  float eps_;
  const float *weight_ = nullptr, *bias_ = nullptr;
};

// tensors: x, y; softmax over the last dimension.
class Softmax final : public Op {
 public:
  Softmax(const Program&, const Args& a) : lines_(a.tensor(0), a.output(1)) {}
  Checked scratch(const Kernels& k) const override { return lines_.scratch(k); }
  void run(const Context& c) const override {
    lines_.run(
        c, [&](const float* x, int64_t sx, float* y, int64_t sy, int64_t n) { c.k->softmax_columns(x, sx, lines_.length, y, sy, n); },
        [&](float* x) {
          float total = c.k->exponentials(x, c.k->largest(x, lines_.length), lines_.length);
          c.k->act(Act::affine, 1.0f / total, 0.0f, x, x, lines_.length);
        });
  }

 private:
  Lines lines_;
};

// Group and instance norm. tensors: x, y [N, C, ...]; ints: groups, has weights; numbers: eps; arrays: [weight, bias].
class GroupNorm final : public Op {
 public:
  GroupNorm(const Program& program, const Args& a) : x_(a.tensor(0)), y_(a.output(1)), groups_(a.integer(0)), eps_(a.number(0)) {
    demand(x_.rank >= 2 && y_.rank == x_.rank && groups_ > 0 && x_.shape[1] % groups_ == 0, "groups do not divide channels");
    for (int d = 0; d < x_.rank; d++) demand(x_.shape[d] == y_.shape[d], "shapes differ");
    Tensor xs = x_, ys = y_;  // one channel of one image
    for (Tensor* t : {&xs, &ys}) {
      t->rank = x_.rank - 2;
      for (int d = 0; d < t->rank; d++) t->shape[d] = t->shape[d + 2], t->stride[d] = t->stride[d + 2];
    }
    walk_ = Walk({&xs, &ys});
    if (a.integer(1)) {
      const Array &w = program.array(a.arrays.at(0), "f"), &b = program.array(a.arrays.at(1), "f");
      demand(w.size == x_.shape[1] && b.size == x_.shape[1], "a norm has another number of weights");
      weight_ = static_cast<const float*>(w.data), bias_ = static_cast<const float*>(b.data);
    }
  }
  Checked scratch(const Kernels&) const override { return walk_.inner(); }
  void run(const Context& c) const override {
    int64_t from, to, per = x_.shape[1] / groups_, o[4], outer = walk_.outer(), inner = walk_.inner(), sx = walk_.step(0), sy = walk_.step(1);
    float count = float(outer * inner * per), *held = c.floats(scratch(*c.k));
    auto run_at = [&](const float* p) -> const float* {
      if (sx == 1) return p;
      for (int64_t k = 0; k < inner; k++) held[k] = p[k * sx];
      return held;
    };
    c.share(x_.shape[0] * groups_, from, to);
    for (int64_t i = from; i < to; i++) {
      const float* x = c.at(x_) + i / groups_ * x_.stride[0];
      float* y = c.at(y_) + i / groups_ * y_.stride[0];
      int64_t first = i % groups_ * per;
      float mean = 0, spread = 0, off = 0;
      for (int pass = 0; pass < 2; pass++) {
        for (int64_t ch = first; ch < first + per; ch++)
          for (int64_t r = 0; r < outer; r++) {
            walk_.at(r, o);
            const float* p = run_at(x + ch * x_.stride[1] + o[0]);
            (pass ? spread : mean) += pass ? c.k->squares(p, mean, inner, &off) : c.k->total(p, inner);
          }
        (pass ? spread : mean) /= count;
      }
      off /= count;
      mean += off, spread = std::max(spread - off * off, 0.0f);
      float scale = 1.0f / std::sqrt(spread + eps_);
      for (int64_t ch = first; ch < first + per; ch++) {
        float w = weight_ ? weight_[ch] * scale : scale, b = (bias_ ? bias_[ch] : 0.0f) - mean * w;
        for (int64_t r = 0; r < outer; r++) {
          walk_.at(r, o);
          const float* p = run_at(x + ch * x_.stride[1] + o[0]);
          float* out = y + ch * y_.stride[1] + o[1];
          if (sy == 1) {
            c.k->act(Act::affine, w, b, p, out, inner);
          } else {
            for (int64_t k = 0; k < inner; k++) out[k * sy] = w * p[k] + b;
          }
        }
      }
    }
  }

 private:
  Tensor x_;
  Output y_;
  int64_t groups_;
  float eps_;
  Walk walk_{};
  const float *weight_ = nullptr, *bias_ = nullptr;
};

// tensors: ids (any shape), y (ids' shape + [width]); arrays: table; ints: rows.
class Lookup final : public Op {
 public:
  Lookup(const Program& program, const Args& a) : ids_(a.tensor(0)), y_(a.output(1)), rows_(a.integer(0)) {
    const Array& table = program.array(a.arrays.at(0), "f");
    demand(y_.rank == ids_.rank + 1 && rows_ > 0 && Checked(rows_) * y_.shape[y_.rank - 1] == table.size, "a table has another size");
    table_ = static_cast<const float*>(table.data);
    Tensor ys = y_;
    ys.rank = ids_.rank;
    walk_ = Walk({&ys, &ids_});
  }
  void run(const Context& c) const override {
    int64_t from, to, o[4], width = y_.shape[y_.rank - 1], step = y_.stride[y_.rank - 1];
    c.share(walk_.outer() * walk_.inner(), from, to);
    for (int64_t i = from; i < to; i++) {
      walk_.at(i / walk_.inner(), o);
      float id = c.at(ids_)[o[1] + i % walk_.inner() * walk_.step(1)];
      int64_t row = id >= 0 && id < float(rows_) ? int64_t(id) : 0;  // ids are checked before they come here
      float* y = c.at(y_) + o[0] + i % walk_.inner() * walk_.step(0);
      const float* from_ = table_ + row * width;
      if (step == 1) std::memcpy(y, from_, size_t(width) * 4);
      else for (int64_t k = 0; k < width; k++) y[k * step] = from_[k];
    }
  }

 private:
  Tensor ids_;
  Output y_;
  int64_t rows_;
  const float* table_;
  Walk walk_{};
};

// tensors: x [B, M, K], y [B, K, N], out [B, M, N] (stride 0 where broadcast).
class Matmul final : public Op {
 public:
  Matmul(const Program&, const Args& a) : x_(a.tensor(0)), y_(a.tensor(1)), out_(a.output(2)) {
    demand(x_.rank == 3 && y_.rank == 3 && out_.rank == 3 && x_.shape[2] == y_.shape[1] && x_.shape[1] == out_.shape[1] &&
               y_.shape[2] == out_.shape[2] && x_.shape[0] == out_.shape[0] && y_.shape[0] == out_.shape[0],
           "matrices do not match");
  }
  Checked scratch(const Kernels&) const override { return out_.shape[2] + (packs() ? Checked(out_.shape[2]) * x_.shape[2] : 0); }
  void run(const Context& c) const override {
    int64_t from, to, m = out_.shape[1], n = out_.shape[2], depth = x_.shape[2];
    c.share(out_.shape[0] * m, from, to);
    float* row = c.floats(scratch(*c.k));
    float* packed = row + n;
    int64_t packed_of = -1;
    for (int64_t i = from; i < to; i++) {
      int64_t b = i / m;
      const float *x = c.at(x_) + b * x_.stride[0] + i % m * x_.stride[1], *y = c.at(y_) + b * y_.stride[0];
      int64_t ys = y_.stride[1];
      if (packs()) {
        if (packed_of != b)
          for (int64_t k = 0; k < depth; k++)
            for (int64_t j = 0; j < n; j++) packed[k * n + j] = y[k * y_.stride[1] + j * y_.stride[2]];
        packed_of = b, y = packed, ys = n;
      }
      std::fill_n(row, n, 0.0f);
      for (int64_t k = 0; k < depth; k++) c.k->accumulate(x[k * x_.stride[2]], y + k * ys, row, n);
      float* out = c.at(out_) + b * out_.stride[0] + i % m * out_.stride[1];
      for (int64_t j = 0; j < n; j++) out[j * out_.stride[2]] = row[j];
    }
  }

 private:
  bool packs() const { return y_.stride[2] != 1; }
  Tensor x_, y_;
  Output out_;
};

// Work that is done elsewhere, between slots. ints: which.
class Outside final : public Op {
 public:
  Outside(const Program&, const Args& a) : which_(a.integer(0)) {}
  bool parallel() const override { return false; }
  void run(const Context& c) const override {
    if (c.outside) (*c.outside)(which_);
  }

 private:
  int64_t which_;
};

}  // namespace

Maker find_tensor(const std::string& kind) {
  if (kind == "copy") return make<Copy>;
  if (kind == "outside") return make<Outside>;
  if (kind == "unary") return make<Unary>;
  if (kind == "binary") return make<Binary>;
  if (kind == "where") return make<Where>;
  if (kind == "reduce") return make<Reduce>;
  if (kind == "norm") return make<Norm>;
  if (kind == "softmax") return make<Softmax>;
  if (kind == "group_norm") return make<GroupNorm>;
  if (kind == "lookup") return make<Lookup>;
  if (kind == "matmul") return make<Matmul>;
  return nullptr;
}

}  // namespace secateur
