// Attention and recurrent layers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "program.h"

namespace secateur {
namespace {

// softmax(q k^T * scale + mask) v. tensors: q [B, H, T, D], k [B, G, S, D], v [B, G, S, E], out [B, H, T, E], [mask [B, H, T, S]];
// ints: causal, cached; numbers: scale. With cached, k and v are the whole caches: they hold `position` tokens, and the T new ones.
class Attention final : public Op {
 public:
  Attention(const Program&, const Args& a) : q_(a.tensor(0)), k_(a.tensor(1)), v_(a.tensor(2)), out_(a.output(3)), causal_(a.integer(0)), cached_(a.integer(1)), scale_(a.number(0)) {
    for (const Tensor* t : Tensors{&q_, &k_, &v_, &out_}) demand(t->rank == 4, "attention needs four dimensions");
    demand(k_.shape[1] > 0 && q_.shape[1] % k_.shape[1] == 0 && v_.shape[1] == k_.shape[1] && k_.shape[3] == q_.shape[3] && v_.shape[2] == k_.shape[2], "heads do not match");
    demand(out_.shape[1] == q_.shape[1] && out_.shape[2] == q_.shape[2] && out_.shape[3] == v_.shape[3], "heads do not match");
    for (const Tensor* t : Tensors{&k_, &v_, &out_}) demand(t->shape[0] == q_.shape[0], "batches do not match");
    if ((masked_ = a.tensors.size() > 4)) {
      mask_ = a.tensor(4);
      demand(mask_.rank == 4 && mask_.shape[2] == q_.shape[2] && mask_.shape[3] == k_.shape[2] && mask_.shape[0] == q_.shape[0] && mask_.shape[1] == q_.shape[1], "a mask has another shape");
    }
  }
  Checked scratch(const Kernels& k) const override {  // scores, keys, a tile of queries and of results
    Checked keys = Checked(k_.shape[2]) + 8;
    return keys * k.attend_width + keys * q_.shape[3] + (Checked(q_.shape[3]) + v_.shape[3]) * k.attend_width + 64;
  }
  void run(const Context& c) const override {
    int64_t keys = cached_ ? std::min(k_.shape[2], c.position + q_.shape[2]) : k_.shape[2], queries = q_.shape[2], from, to;
    bool tiled = q_.stride[2] == 1 && out_.stride[2] == 1 && queries >= 8;
    int64_t tile = tiled ? c.k->attend_width : 1, tiles = (queries + tile - 1) / tile;
    int64_t heads = q_.shape[1], group = heads / k_.shape[1], depth = q_.shape[3], wide = v_.shape[3];
    c.share(q_.shape[0] * heads * tiles, from, to);
    float* scores = c.floats(scratch(*c.k));
    float *packed = scores + (keys + 8) * c.k->attend_width, *query = packed + (keys + 8) * depth, *result = query + depth * c.k->attend_width;
    int64_t packed_head = -1;
    for (int64_t i = from; i < to; i++) {
      int64_t t = i % tiles * tile, h = i / tiles % heads, b = i / tiles / heads, n = std::min(tile, queries - t);
      const float *q = c.at(q_) + b * q_.stride[0] + h * q_.stride[1] + t * q_.stride[2];
      const float *k = c.at(k_) + b * k_.stride[0] + h / group * k_.stride[1], *v = c.at(v_) + b * v_.stride[0] + h / group * v_.stride[1];
      const float* mask = masked_ ? c.at(mask_) + b * mask_.stride[0] + h * mask_.stride[1] + t * mask_.stride[2] : nullptr;
      float* out = c.at(out_) + b * out_.stride[0] + h * out_.stride[1] + t * out_.stride[2];
      int64_t first = causal_ ? (cached_ ? c.position : 0) + t : -1;
      if (!tiled) {
        one(c, q, k, v, mask, first < 0 ? keys : std::min(keys, first + 1), scores, query, out);
        continue;
      }
      if (packed_head != b * heads + h) {
        for (int64_t d = 0; d < depth; d++)
          for (int64_t s = 0; s < keys; s++) packed[s * depth + d] = k[s * k_.stride[2] + d * k_.stride[3]] * scale_;
        packed_head = b * heads + h;
      }
      const float* in = q;
      float* to_ = out;
      int64_t in_stride = q_.stride[3], out_stride = out_.stride[3];
      if (n < tile) {  // whole registers would read and write beyond the last query
        for (int64_t d = 0; d < depth; d++)
          for (int64_t j = 0; j < tile; j++) query[d * tile + j] = j < n ? q[d * q_.stride[3] + j] : 0.0f;
        in = query, in_stride = tile, to_ = result, out_stride = tile;
      }
      c.k->attend(in, in_stride, packed, v, v_.stride[3], v_.stride[2], keys, depth, wide, mask, masked_ ? mask_.stride[2] : 0, masked_ ? mask_.stride[3] : 0,
                  first, scores, to_, out_stride, n);
      if (n < tile)
        for (int64_t d = 0; d < wide; d++) std::memcpy(out + d * out_.stride[3], result + d * tile, size_t(n) * 4);
    }
  }

 private:
  void one(const Context& c, const float* q, const float* k, const float* v, const float* mask, int64_t keys, float* scores, float* query, float* out) const {
    int64_t depth = q_.shape[3], wide = v_.shape[3];
    for (int64_t d = 0; d < depth; d++) query[d] = q[d * q_.stride[3]] * scale_;
    if (k_.stride[2] == 1) {  // keys are neighbours: add up over depth
      std::fill_n(scores, keys, 0.0f);
      for (int64_t d = 0; d < depth; d++) c.k->accumulate(query[d], k + d * k_.stride[3], scores, keys);
    } else {
      for (int64_t s = 0; s < keys; s++) {
        const float* key = k + s * k_.stride[2];
        if (k_.stride[3] == 1) scores[s] = c.k->dot(query, key, depth);
        else {
          scores[s] = 0;
          for (int64_t d = 0; d < depth; d++) scores[s] += query[d] * key[d * k_.stride[3]];
        }
      }
    }
    if (mask)
      for (int64_t s = 0; s < keys; s++) scores[s] += mask[s * mask_.stride[3]];
    float high = c.k->largest(scores, keys);
    float sum = c.k->exponentials(scores, high == -INFINITY ? 0.0f : high, keys), inverse = sum == 0 ? 0.0f : 1.0f / sum;  // nothing to see: zeros, as in torch
    for (int64_t e = 0; e < wide; e++) {
      const float* column = v + e * v_.stride[3];
      float total = 0;
      if (v_.stride[2] == 1) total = c.k->dot(scores, column, keys);
      else for (int64_t s = 0; s < keys; s++) total += scores[s] * column[s * v_.stride[2]];
      out[e * out_.stride[3]] = total * inverse;
    }
  }
  Tensor q_, k_, v_, mask_;
  Output out_;
  bool causal_, cached_, masked_;
  float scale_;
};

// Writes new keys or values behind the `position` tokens that a cache holds. tensors: x [B, G, T, D], cache [B, G, S, D].
class Append final : public Op {
 public:
  Append(const Program&, const Args& a) : x_(a.tensor(0)), cache_(a.output(1)) {
    demand(x_.rank == 4 && cache_.rank == 4 && x_.shape[2] <= cache_.shape[2] && x_.shape[3] == cache_.shape[3] && x_.shape[0] == cache_.shape[0] &&
               x_.shape[1] == cache_.shape[1] && cache_.space == Space::state, "a cache does not match");
  }
  void run(const Context& c) const override {
    int64_t from, to, start = std::min(c.position, cache_.shape[2] - x_.shape[2]);
    c.share(x_.shape[0] * x_.shape[1], from, to);
    for (int64_t i = from; i < to; i++) {
      const float* x = c.at(x_) + i / x_.shape[1] * x_.stride[0] + i % x_.shape[1] * x_.stride[1];
      float* y = c.at(cache_) + i / x_.shape[1] * cache_.stride[0] + i % x_.shape[1] * cache_.stride[1] + start * cache_.stride[2];
      for (int64_t d = 0; d < x_.shape[3]; d++)
        for (int64_t t = 0; t < x_.shape[2]; t++) y[t * cache_.stride[2] + d * cache_.stride[3]] = x[t * x_.stride[2] + d * x_.stride[3]];
    }
  }

 private:
  Tensor x_;
  Output cache_;
};

// LSTM and GRU over time; the input's share of the gates is computed before. tensors: gates [T, B, 4H or 3H], out [T, B, H], h0, c0,
// h, c [B, H] (c's are not used by a GRU); ints: is LSTM, reversed, kind, sparse; arrays: bias of the recurrent share, values, [starts, index].
class Recurrent final : public Op {
 public:
  Recurrent(const Program& program, const Args& a)
      : gates_(a.tensor(0)), h0_(a.tensor(2)), s0_(a.tensor(3)), out_(a.output(1)), h_(a.output(4)), s_(a.output(5)), lstm_(a.integer(0)), reversed_(a.integer(1)) {
    demand(gates_.rank == 3 && out_.rank == 3, "a recurrent layer needs time, batch and features");
    time_ = gates_.shape[0], batch_ = gates_.shape[1], hidden_ = out_.shape[2];
    int64_t gates = (lstm_ ? 4 : 3) * hidden_;
    demand(gates_.shape[2] == gates && out_.shape[0] == time_ && out_.shape[1] == batch_, "gates do not match");
    for (const Tensor* t : Tensors{&h0_, &s0_, &h_, &s_})
      demand(t->rank == 2 && t->shape[0] == batch_ && t->shape[1] == hidden_, "a state has another shape");
    const Array &bias = program.array(a.arrays.at(0), "f"), &values = program.array(a.arrays.at(1), "f");
    demand(bias.size == gates, "a bias has another length");
    m_ = {gates, hidden_, nullptr, nullptr, nullptr, values.data, nullptr, static_cast<const float*>(bias.data), Values::f32};
    set_rows(m_, a.integer(2), program, a, 2, values.size);
  }
  Checked scratch(const Kernels&) const override { return Checked(hidden_) * 2 + Checked(m_.rows) * 2; }
  bool parallel() const override { return batch_ > 1; }
  void run(const Context& c) const override {
    int64_t from, to, n = hidden_, gates = m_.rows;
    c.share(batch_, from, to);
    float *h = c.floats(scratch(*c.k)), *s = h + n, *mine = s + n, *fed = mine + gates;
    for (int64_t b = from; b < to; b++) {
      const float *h0 = c.at(h0_) + b * h0_.stride[0], *s0 = c.at(s0_) + b * s0_.stride[0];
      for (int64_t j = 0; j < n; j++) h[j] = h0[j * h0_.stride[1]], s[j] = s0[j * s0_.stride[1]];
      for (int64_t i = 0; i < time_; i++) {
        int64_t t = reversed_ ? time_ - 1 - i : i;
        const float* gate = c.at(gates_) + t * gates_.stride[0] + b * gates_.stride[1];
        for (int64_t j = 0; j < gates; j++) fed[j] = gate[j * gates_.stride[2]];
        c.k->gemv(m_, 0, gates, h, mine);
        lstm_ ? lstm(c, h, s, mine, fed) : gru(c, h, mine, fed);
        float* out = c.at(out_) + t * out_.stride[0] + b * out_.stride[1];
        for (int64_t j = 0; j < n; j++) out[j * out_.stride[2]] = h[j];
      }
      float *last_h = c.at(h_) + b * h_.stride[0], *last_s = c.at(s_) + b * s_.stride[0];
      for (int64_t j = 0; j < n; j++) last_h[j * h_.stride[1]] = h[j], last_s[j * s_.stride[1]] = s[j];
    }
  }
  std::string choice() const override { return m_.index ? "sparse rows times a vector" : "dense rows times a vector"; }

 private:
  void lstm(const Context& c, float* h, float* s, float* g, const float* fed) const {  // gates: input, forget, cell, output
    int64_t n = hidden_;
    c.k->pair(Pair::add, g, 1, fed, 1, g, 4 * n);
    c.k->act(Act::sigmoid, 0, 0, g, g, 2 * n);
    c.k->act(Act::tanh, 0, 0, g + 2 * n, g + 2 * n, n);
    c.k->act(Act::sigmoid, 0, 0, g + 3 * n, g + 3 * n, n);
    c.k->pair(Pair::mul, g, 1, g + 2 * n, 1, g, n);
    c.k->pair(Pair::mul, s, 1, g + n, 1, s, n);
    c.k->pair(Pair::add, s, 1, g, 1, s, n);
    c.k->act(Act::tanh, 0, 0, s, h, n);
    c.k->pair(Pair::mul, h, 1, g + 3 * n, 1, h, n);
  }
  void gru(const Context& c, float* h, float* g, float* fed) const {  // gates: reset, update, new
    int64_t n = hidden_;
    c.k->pair(Pair::add, fed, 1, g, 1, fed, 2 * n);
    c.k->act(Act::sigmoid, 0, 0, fed, fed, 2 * n);
    c.k->pair(Pair::mul, g + 2 * n, 1, fed, 1, g + 2 * n, n);
    c.k->pair(Pair::add, fed + 2 * n, 1, g + 2 * n, 1, g, n);
    c.k->act(Act::tanh, 0, 0, g, g, n);
    c.k->pair(Pair::sub, h, 1, g, 1, h, n);
    c.k->pair(Pair::mul, h, 1, fed + n, 1, h, n);
    c.k->pair(Pair::add, h, 1, g, 1, h, n);
  }
  Tensor gates_, h0_, s0_;
  Output out_, h_, s_;
  bool lstm_, reversed_;
  int64_t time_, batch_, hidden_;
  Gemv m_;
};

}  // namespace

Maker find_sequence(const std::string& kind) {
  if (kind == "attention") return make<Attention>;
  if (kind == "append") return make<Append>;
  if (kind == "recurrent") return make<Recurrent>;
  return nullptr;
}

}  // namespace secateur
