// The kernels, compiled once for each instruction set: -DSEC_ISA=baseline | avx2 | avx512.
#include "kernels.h"

#include <cmath>

#include "vec.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace SEC_ISA {
using namespace secateur;

template <int NV>
SEC_INLINE void finish(Vec (&sums)[NV], float* y, const Ending& e) {
  SEC_UNROLL for (int v = 0; v < NV; v++) {
    Vec value = sums[v];
    if (e.last) value = at_most(at_least(value, splat(e.low)), splat(e.high));
    store(y + v * W, value);
  }
}

template <int NV>
SEC_INLINE void begin(Vec (&sums)[NV], int64_t row, const float* y, const Ending& e) {
  if (!e.first) {
    SEC_UNROLL for (int v = 0; v < NV; v++) sums[v] = load(y + v * W);
    return;
  }
  Vec bias = splat(e.bias[row]);
  if (e.residual) {
    const float* r = e.residual + row * e.residual_stride;
    SEC_UNROLL for (int v = 0; v < NV; v++) sums[v] = bias + load(r + v * W);
  } else {
    SEC_UNROLL for (int v = 0; v < NV; v++) sums[v] = bias;
  }
}

void act(Act kind, float a, float b, const float* x, float* y, int64_t n);

// NR rows of any pattern, side by side over NV registers of positions. The stream: NR offsets, NR weights, and so on.
template <int NR, int NV>
void rows(const Word* stream, const Group* from, const Group* to, const char* x, float* y, int64_t stride, const Ending& e) {
  for (const Group* g = from; g < to; g++) {
    Vec sums[NR][NV];
    SEC_UNROLL for (int r = 0; r < NR; r++) begin(sums[r], g->rows[r], y + g->rows[r] * stride, e);
    const Word* at = stream + g->at;
    for (const Word* end = at + int64_t(g->steps) * 2 * NR; at < end; at += 2 * NR) {
      SEC_UNROLL for (int r = 0; r < NR; r++) {
        const float* p = reinterpret_cast<const float*>(x + at[r].offset);
        Vec w = splat(at[NR + r].weight);
        SEC_UNROLL for (int v = 0; v < NV; v++) sums[r][v] += w * load(p + v * W);
      }
    }
    // Backwards: a group that is not full repeats its first row, which must be written last.
    SEC_UNROLL for (int r = NR - 1; r >= 0; r--) {
      finish(sums[r], y + g->rows[r] * stride, e);
    }
    if (e.last && e.act != Act::none) {
      for (int r = 0; r < NR; r++) {
        if (r && g->rows[r] == g->rows[0]) break;
        float* out = y + g->rows[r] * stride;
        act(e.act, e.a, e.b, out, out, NV * W);
      }
    }
  }
}

// R neighbouring rows that share their columns: each register of x that is loaded serves R rows. The stream: offset, R weights.
template <int R, int NV>
void blocks(const Word* stream, const Group* from, const Group* to, const char* x, float* y, int64_t stride, const Ending& e) {
  for (const Group* g = from; g < to; g++) {
    Vec sums[R][NV];
    float* out = y + g->rows[0] * stride;
    SEC_UNROLL for (int r = 0; r < R; r++) begin(sums[r], g->rows[0] + r, out + r * stride, e);
    const Word* at = stream + g->at;
    for (const Word* end = at + int64_t(g->steps) * (R + 1); at < end; at += R + 1) {
      const float* p = reinterpret_cast<const float*>(x + at->offset);
      Vec in[NV];
      SEC_UNROLL for (int v = 0; v < NV; v++) in[v] = load(p + v * W);
      SEC_UNROLL for (int r = 0; r < R; r++) {
        Vec w = splat(at[1 + r].weight);
        SEC_UNROLL for (int v = 0; v < NV; v++) sums[r][v] += w * in[v];
      }
    }
    SEC_UNROLL for (int r = 0; r < R; r++) finish(sums[r], out + r * stride, e);
    if (e.last && e.act != Act::none)
      for (int r = 0; r < R; r++) act(e.act, e.a, e.b, out + r * stride, out + r * stride, NV * W);
  }
}

template <class F>
SEC_INLINE void each(const float* x, float* y, int64_t n, F f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(y + i, f(load(x + i)));
  if (i == n) return;
  float tail[W] = {};
  for (int64_t k = i; k < n; k++) tail[k - i] = x[k];
  store(tail, f(load(tail)));
  for (int64_t k = i; k < n; k++) y[k] = tail[k - i];
}

template <class F>
SEC_INLINE void each_scalar(const float* x, float* y, int64_t n, F f) {
  for (int64_t i = 0; i < n; i++) y[i] = f(x[i]);
}

void act(Act kind, float a, float b, const float* x, float* y, int64_t n) {
  Vec va = splat(a), vb = splat(b);
  switch (kind) {
    case Act::clip: return each(x, y, n, [=](Vec v) { return at_most(at_least(v, va), vb); });
    case Act::gelu: return each(x, y, n, [](Vec v) { return v * 0.5f * (1.0f + erf(v * 0.70710678f)); });
    case Act::gelu_tanh:
      return each(x, y, n, [](Vec v) { return v * 0.5f * (1.0f + tanh(0.79788456f * (v + 0.044715f * v * v * v))); });
    case Act::silu: return each(x, y, n, [](Vec v) { return v * sigmoid(v); });
    case Act::sigmoid: return each(x, y, n, [](Vec v) { return sigmoid(v); });
    case Act::tanh: return each(x, y, n, [](Vec v) { return tanh(v); });
    case Act::hardswish:
      return each(x, y, n, [](Vec v) { return v * at_most(at_least(v + 3.0f, Vec{}), splat(6.0f)) * (1.0f / 6.0f); });
    case Act::hardsigmoid:
      return each(x, y, n, [](Vec v) { return at_most(at_least(v + 3.0f, Vec{}), splat(6.0f)) * (1.0f / 6.0f); });
    case Act::leaky: return each(x, y, n, [=](Vec v) { return v < 0 ? va * v : v; });
    case Act::exp: return each(x, y, n, [](Vec v) { return exp(v); });
    case Act::neg: return each(x, y, n, [](Vec v) { return -v; });
    case Act::sqrt: return each_scalar(x, y, n, [](float v) { return __builtin_sqrtf(v); });
    case Act::rsqrt: return each_scalar(x, y, n, [](float v) { return 1.0f / __builtin_sqrtf(v); });
    case Act::abs: return each(x, y, n, [](Vec v) { return v < 0 ? -v : v; });
    case Act::erf: return each(x, y, n, [](Vec v) { return erf(v); });
    case Act::log: return each_scalar(x, y, n, [](float v) { return logf(v); });
    case Act::elu: return each(x, y, n, [=](Vec v) { return v < 0 ? va * (exp(v) - 1.0f) : v; });
    case Act::softplus: return each_scalar(x, y, n, [](float v) { return v > 20 ? v : log1pf(expf(v)); });
    case Act::affine: return each(x, y, n, [=](Vec v) { return va * v + vb; });
    case Act::power: return each_scalar(x, y, n, [=](float v) { return powf(v, a); });
    case Act::sin: return each_scalar(x, y, n, [](float v) { return sinf(v); });
    case Act::cos: return each_scalar(x, y, n, [](float v) { return cosf(v); });
    case Act::reciprocal: return each(x, y, n, [](Vec v) { return 1.0f / v; });
    case Act::mish: return each_scalar(x, y, n, [](float v) { return v * tanhf(v > 20 ? v : log1pf(expf(v))); });
    default:
      if (x != y) each(x, y, n, [](Vec v) { return v; });
  }
}

template <class F>
SEC_INLINE void each2(const float* x, int64_t xs, const float* y, int64_t ys, float* out, int64_t n, F f) {
  int64_t i = 0;
  if (xs && ys) {
    for (; i + W <= n; i += W) store(out + i, f(load(x + i), load(y + i)));
  } else if (xs) {
    for (Vec b = splat(*y); i + W <= n; i += W) store(out + i, f(load(x + i), b));
  } else if (ys) {
    for (Vec a = splat(*x); i + W <= n; i += W) store(out + i, f(a, load(y + i)));
  }
  if (i == n) return;
  for (; i < n; i += W) {
    float a[W] = {}, b[W] = {};
    int64_t left = n - i < W ? n - i : W;
    for (int64_t k = 0; k < left; k++) a[k] = x[(i + k) * xs], b[k] = y[(i + k) * ys];
    store(a, f(load(a), load(b)));
    for (int64_t k = 0; k < left; k++) out[i + k] = a[k];
  }
}

SEC_INLINE Vec flag(Ints truth) { return truth ? splat(1.0f) : Vec{}; }

void pair(Pair kind, const float* x, int64_t xs, const float* y, int64_t ys, float* out, int64_t n) {
  switch (kind) {
    case Pair::add: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return a + b; });
    case Pair::sub: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return a - b; });
    case Pair::mul: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return a * b; });
    case Pair::div: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return a / b; });
    case Pair::max: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return larger(a, b); });
    case Pair::min: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return smaller(a, b); });
    case Pair::prelu: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return a < 0 ? a * b : a; });
    case Pair::lt: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return flag(a < b); });
    case Pair::le: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return flag(a <= b); });
    case Pair::gt: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return flag(a > b); });
    case Pair::ge: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return flag(a >= b); });
    case Pair::eq: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return flag(a == b); });
    case Pair::ne: return each2(x, xs, y, ys, out, n, [](Vec a, Vec b) { return flag(a != b); });
    case Pair::pow:
      for (int64_t i = 0; i < n; i++) out[i] = powf(x[i * xs], y[i * ys]);
      return;
    default: return;
  }
}

SEC_INLINE float half(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
  if (exponent == 31) bits = sign | 0x7f800000u | (mantissa << 13);
  else if (exponent) bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  else {
    float tiny = float(mantissa) * 5.9604644775390625e-8f;
    return sign ? -tiny : tiny;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
#endif
}

typedef float Eight __attribute__((vector_size(32)));
typedef float EightLoose __attribute__((vector_size(32), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(8), aligned(1), may_alias));

SEC_INLINE Eight values_at(const float* v) { return *reinterpret_cast<const EightLoose*>(v); }
SEC_INLINE Eight values_at(const int8_t* v) {
#if defined(__AVX2__)  // GCC 12 takes the vector apart otherwise
  __m256 r = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(v))));
  return reinterpret_cast<Eight&>(r);
#else
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(v), Eight);
#endif
}
SEC_INLINE Eight values_at(const uint16_t* v) {
#if defined(__F16C__)
  __m256 r = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v)));
  return reinterpret_cast<Eight&>(r);
#else
  return Eight{half(v[0]), half(v[1]), half(v[2]), half(v[3]), half(v[4]), half(v[5]), half(v[6]), half(v[7])};
#endif
}
SEC_INLINE float value_at(const float* v) { return *v; }
SEC_INLINE float value_at(const int8_t* v) { return float(*v); }
SEC_INLINE float value_at(const uint16_t* v) { return half(*v); }
SEC_INLINE float sum8(Eight v) { return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])); }

template <class T>
SEC_INLINE float sparse_row(const T* v, const uint16_t* c, int64_t e, int64_t end, const float* x) {
  Eight one{}, two{};
  for (; e + 16 <= end; e += 16) {
    const uint16_t* k = c + e;
    one += values_at(v + e) * Eight{x[k[0]], x[k[1]], x[k[2]], x[k[3]], x[k[4]], x[k[5]], x[k[6]], x[k[7]]};
    two += values_at(v + e + 8) * Eight{x[k[8]], x[k[9]], x[k[10]], x[k[11]], x[k[12]], x[k[13]], x[k[14]], x[k[15]]};
  }
  float total = sum8(one + two);
  for (; e < end; e++) total += value_at(v + e) * x[c[e]];
  return total;
}

// Floats are read one by one: no vector has to be put together from eight loads.
SEC_INLINE float sparse_row(const float* v, const uint16_t* c, int64_t e, int64_t end, const float* x) {
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
  for (; e + 8 <= end; e += 8) {
    s0 += v[e] * x[c[e]], s1 += v[e + 1] * x[c[e + 1]], s2 += v[e + 2] * x[c[e + 2]], s3 += v[e + 3] * x[c[e + 3]];
    s4 += v[e + 4] * x[c[e + 4]], s5 += v[e + 5] * x[c[e + 5]], s6 += v[e + 6] * x[c[e + 6]], s7 += v[e + 7] * x[c[e + 7]];
  }
  for (; e < end; e++) s0 += v[e] * x[c[e]];
  return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7));
}

// Eight of sixteen neighbouring numbers.
SEC_INLINE Eight picked(const float* x, int32_t places) {
#if defined(__AVX2__)
  __m256i which = _mm256_srlv_epi32(_mm256_set1_epi32(places), _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21));  // only 3 bits count
  __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x), which), high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x + 8), which);
  __m256 both = _mm256_blend_ps(low, high, 0xF0);
  return reinterpret_cast<Eight&>(both);
#else
  Eight both;
  SEC_UNROLL for (int k = 0; k < 8; k++) both[k] = x[(k & 4) * 2 + ((places >> (3 * k)) & 7)];
  return both;
#endif
}

template <int NR, class T>
SEC_INLINE void halves(const Gemv& m, const T* values, int64_t row, const float* x, float* y) {
  int64_t blocks = (m.columns + 15) / 16, whole = m.columns / 16;
  const int32_t* places = m.places + row * blocks;
  const T* v = values + row * blocks * 8;
  Eight sums[NR] = {};
  for (int64_t b = 0; b < whole; b++) {
    SEC_UNROLL for (int r = 0; r < NR; r++) sums[r] += values_at(v + (r * blocks + b) * 8) * picked(x + 16 * b, places[r * blocks + b]);
  }
  if (whole < blocks) {
    float tail[16] = {};
    for (int64_t k = 16 * whole; k < m.columns; k++) tail[k - 16 * whole] = x[k];
    SEC_UNROLL for (int r = 0; r < NR; r++) sums[r] += values_at(v + (r * blocks + whole) * 8) * picked(tail, places[r * blocks + whole]);
  }
  SEC_UNROLL for (int r = 0; r < NR; r++) {
    float total = sum8(sums[r]);
    y[row + r] = (m.scales ? total * m.scales[row + r] : total) + m.bias[row + r];
  }
}

template <class T>
SEC_INLINE void gemv_of(const Gemv& m, const T* values, int64_t row, int64_t end, const float* x, float* y) {
  if (m.index) {
    for (; row < end; row++) {
      float total = sparse_row(values, m.index, m.starts[row], m.starts[row + 1], x);
      y[row] = (m.scales ? total * m.scales[row] : total) + m.bias[row];
    }
    return;
  }
  if (m.places) {
    for (; row + 4 <= end; row += 4) halves<4>(m, values, row, x, y);
    for (; row < end; row++) halves<1>(m, values, row, x, y);
    return;
  }
  for (; row < end; row += 4) {
    int many = end - row < 4 ? int(end - row) : 4;
    const T* w = values + row * m.columns;
    Eight sums[4] = {};
    int64_t k = 0;
    if (many == 4) {
      for (; k + 8 <= m.columns; k += 8) {
        Eight in = values_at(x + k);
        SEC_UNROLL for (int r = 0; r < 4; r++) sums[r] += values_at(w + r * m.columns + k) * in;
      }
    } else {
      for (; k + 8 <= m.columns; k += 8)
        for (int r = 0; r < many; r++) sums[r] += values_at(w + r * m.columns + k) * values_at(x + k);
    }
    for (int r = 0; r < many; r++) {
      float total = sum8(sums[r]);
      for (int64_t j = k; j < m.columns; j++) total += value_at(w + r * m.columns + j) * x[j];
      y[row + r] = (m.scales ? total * m.scales[row + r] : total) + m.bias[row + r];
    }
  }
}

void gemv(const Gemv& m, int64_t row, int64_t end, const float* x, float* y) {
  switch (m.kind) {
    case Values::f32: return gemv_of(m, static_cast<const float*>(m.values), row, end, x, y);
    case Values::f16: return gemv_of(m, static_cast<const uint16_t*>(m.values), row, end, x, y);
    case Values::i8: return gemv_of(m, static_cast<const int8_t*>(m.values), row, end, x, y);
  }
}

template <int KH, int KW>
SEC_INLINE void depthwise_flat(const Depthwise& d, const float* x, const float* w, Vec bias, Vec low, Vec high, float* y) {
  int h = KH ? KH : d.height, k = KW ? KW : d.width;
  Vec taps[KH && KW ? KH * KW : 1];
  if (KH && KW && KH * KW <= 9) {
    SEC_UNROLL for (int i = 0; i < KH * KW; i++) taps[i] = splat(w[i]);
  }
  for (int64_t i = 0; i < d.span; i += W) {
    Vec a = bias, b{};
    if (KH && KW && KH * KW <= 9) {
      SEC_UNROLL for (int t = 0; t < KH * KW; t++) {
        Vec in = load(x + i + (t / KW) * d.dilation_y * d.pitch + (t % KW) * d.dilation_x);
        if (t & 1) b += taps[t] * in;
        else a += taps[t] * in;
      }
    } else {
      for (int ky = 0; ky < h; ky++) {
        const float* p = x + i + int64_t(ky) * d.dilation_y * d.pitch;
        SEC_UNROLL for (int kx = 0; kx < k; kx++) {
          Vec in = load(p + kx * d.dilation_x), weight = splat(w[ky * k + kx]);
          if (kx & 1) b += weight * in;
          else a += weight * in;
        }
      }
    }
    store(y + i, at_most(at_least(a + b, low), high));
  }
}

// x points to the pixel that the first weight meets for the first output.
void depthwise(const Depthwise& d, const float* x, const float* w, float bias, float low, float high, float* y) {
  Vec vbias = splat(bias), vlow = splat(low), vhigh = splat(high);
  if (d.stride == 1) {
    if (d.height == 3 && d.width == 3) return depthwise_flat<3, 3>(d, x, w, vbias, vlow, vhigh, y);
    if (d.height == 5 && d.width == 5) return depthwise_flat<5, 5>(d, x, w, vbias, vlow, vhigh, y);
    if (d.height == 7 && d.width == 7) return depthwise_flat<7, 7>(d, x, w, vbias, vlow, vhigh, y);
    return depthwise_flat<0, 0>(d, x, w, vbias, vlow, vhigh, y);
  }
  for (int64_t row = 0; row < d.out_height; row++) {
    const float* from = x + row * d.stride * d.pitch;
    float* out = y + row * d.out_pitch;
    int64_t i = 0;
    if (d.stride == 2) {
      for (; i < d.out_width; i += W) {
        Vec a = vbias;
        for (int ky = 0; ky < d.height; ky++) {
          const float* p = from + int64_t(ky) * d.dilation_y * d.pitch + 2 * i;
          const float* weights = w + ky * d.width;
          if (d.dilation_x == 1) {
            int kx = 0;
            for (; kx + 2 <= d.width; kx += 2) {
              Vec one = load(p + kx), two = load(p + kx + W);
              a += splat(weights[kx]) * evens(one, two);
              a += splat(weights[kx + 1]) * odds(one, two);
            }
            if (kx < d.width) a += splat(weights[kx]) * evens(load(p + kx), load(p + kx + W));
          } else {
            for (int kx = 0; kx < d.width; kx++)
              a += splat(weights[kx]) * evens(load(p + kx * d.dilation_x), load(p + kx * d.dilation_x + W));
          }
        }
        a = at_most(at_least(a, vlow), vhigh);
        if (i + W <= d.out_width) store(out + i, a);
        else
          for (int64_t k = i; k < d.out_width; k++) out[k] = a[k - i];
      }
    } else {
      for (; i < d.out_width; i++) {
        float a = bias;
        for (int ky = 0; ky < d.height; ky++)
          for (int kx = 0; kx < d.width; kx++)
            a += w[ky * d.width + kx] * from[int64_t(ky) * d.dilation_y * d.pitch + i * d.stride + kx * d.dilation_x];
        a = a < low ? low : a;
        out[i] = a > high ? high : a;
      }
    }
  }
}

void evens_of(const float* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + W < n; i += W) store(y + i, evens(load(x + 2 * i), load(x + 2 * i + W)));  // never past x[2n - 2]
  for (; i < n; i++) y[i] = x[2 * i];
}

void accumulate(float w, const float* x, float* y, int64_t n) {
  Vec vw = splat(w);
  int64_t i = 0;
  for (; i + W <= n; i += W) store(y + i, load(y + i) + vw * load(x + i));
  for (; i < n; i++) y[i] += w * x[i];
}

float dot(const float* x, const float* y, int64_t n) {
  Vec a{}, b{};
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) a += load(x + i) * load(y + i), b += load(x + i + W) * load(y + i + W);
  float total = sum(a + b);
  for (; i < n; i++) total += x[i] * y[i];
  return total;
}

float total(const float* x, int64_t n) {
  Vec a{};
  int64_t i = 0;
  for (; i + W <= n; i += W) a += load(x + i);
  float s0 = i ? sum(a) : 0, s1 = 0;  // two chains: short rows wait for additions, not for memory
  for (; i + 2 <= n; i += 2) s0 += x[i], s1 += x[i + 1];
  if (i < n) s0 += x[i];
  return s0 + s1;
}

float total_lines(const float* x, int64_t pitch, int64_t lines, int64_t n) {
  Ints lane{};
  for (int i = 0; i < W; i++) lane[i] = i;
  int64_t whole = n / W * W;
  Ints there = lane < int32_t(n - whole);
  Vec a{};
  for (int64_t k = 0; k < lines; k++, x += pitch) {
    for (int64_t i = 0; i < whole; i += W) a += load(x + i);
    if (whole < n) a += there ? load(x + whole) : Vec{};
  }
  return sum(a);
}

float squares(const float* x, float mean, int64_t n, float* rest) {
  Vec a{}, r{}, m = splat(mean);
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    Vec d = load(x + i) - m;
    a += d * d, r += d;
  }
  float result = sum(a);
  *rest += sum(r);
  for (; i < n; i++) result += (x[i] - mean) * (x[i] - mean), *rest += x[i] - mean;
  return result;
}

float largest(const float* x, int64_t n) {
  float best = -__builtin_inff();
  int64_t i = 0;
  if (n >= W) {
    Vec m = load(x);
    for (i = W; i + W <= n; i += W) m = larger(m, load(x + i));
    for (int k = 0; k < W; k++) best = m[k] > best || m[k] != m[k] ? m[k] : best;
  }
  for (; i < n; i++) best = x[i] > best || x[i] != x[i] ? x[i] : best;
  return best;
}

float exponentials(float* x, float highest, int64_t n) {
  Vec a{}, h = splat(highest);
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    Vec e = exp(load(x + i) - h);
    store(x + i, e);
    a += e;
  }
  float result = sum(a);
  if (i < n) {
    float tail[W] = {};
    for (int64_t k = i; k < n; k++) tail[k - i] = x[k];
    store(tail, exp(load(tail) - h));
    for (int64_t k = i; k < n; k++) result += x[k] = tail[k - i];
  }
  return result;
}

template <int NV>
SEC_INLINE void norm_columns_of(const float* x, int64_t stride, int64_t channels, const float* weight, const float* bias, float eps,
                                bool centred, float* y, int64_t y_stride) {
  Vec mean[NV] = {}, spread[NV] = {}, rest[NV] = {};
  float inverse = 1.0f / float(channels);
  if (centred) {
    for (int64_t c = 0; c < channels; c++)
      SEC_UNROLL for (int v = 0; v < NV; v++) mean[v] += load(x + c * stride + v * W);
    SEC_UNROLL for (int v = 0; v < NV; v++) mean[v] *= inverse;
  }
  for (int64_t c = 0; c < channels; c++) {
    SEC_UNROLL for (int v = 0; v < NV; v++) {
      Vec d = load(x + c * stride + v * W) - mean[v];
      spread[v] += d * d, rest[v] += d;
    }
  }
  // A mean of many nearly equal values is off by what its sum was rounded by, and a norm would enlarge that: the second pass mends it.
  SEC_UNROLL for (int v = 0; v < NV; v++) {
    Vec off = centred ? rest[v] * inverse : Vec{};
    mean[v] += off;
    Vec variance = larger(spread[v] * inverse - off * off, Vec{}) + eps;
    for (int i = 0; i < W; i++) spread[v][i] = 1.0f / __builtin_sqrtf(variance[i]);
  }
  for (int64_t c = 0; c < channels; c++) {
    Vec w = splat(weight ? weight[c] : 1.0f), b = splat(bias ? bias[c] : 0.0f);
    SEC_UNROLL for (int v = 0; v < NV; v++)
      store(y + c * y_stride + v * W, (load(x + c * stride + v * W) - mean[v]) * spread[v] * w + b);
  }
}

void norm_columns(const float* x, int64_t stride, int64_t channels, const float* weight, const float* bias, float eps, bool centred,
                  float* y, int64_t y_stride, int64_t n) {
  int64_t i = 0;
  for (; i + W < n; i += 2 * W) norm_columns_of<2>(x + i, stride, channels, weight, bias, eps, centred, y + i, y_stride);
  if (i < n) norm_columns_of<1>(x + i, stride, channels, weight, bias, eps, centred, y + i, y_stride);
}

void softmax_columns(const float* x, int64_t stride, int64_t channels, float* y, int64_t y_stride, int64_t n) {
  for (int64_t i = 0; i < n; i += W) {
    Vec high = splat(-__builtin_inff()), sums{};
    for (int64_t c = 0; c < channels; c++) high = larger(high, load(x + c * stride + i));
    for (int64_t c = 0; c < channels; c++) {
      Vec e = exp(load(x + c * stride + i) - high);
      sums += e;
      store(y + c * y_stride + i, e);
    }
    Vec inverse = 1.0f / sums;
    for (int64_t c = 0; c < channels; c++) store(y + c * y_stride + i, load(y + c * y_stride + i) * inverse);
  }
}

constexpr int TILE = 3;
constexpr int TW = TILE * W;

void attend(const float* q, int64_t q_stride, const float* keys, const float* v, int64_t v_depth_stride, int64_t v_stride, int64_t n_keys,
            int64_t depth, int64_t v_depth, const float* mask, int64_t mask_step_q, int64_t mask_step_k, int64_t causal_from, float* scores,
            float* out, int64_t out_stride, int64_t n_queries) {
  // scores[key][query]: keys that no query of the tile may see (causal) are left out altogether.
  int64_t seen = causal_from >= 0 && causal_from + n_queries < n_keys ? causal_from + n_queries : n_keys;
  int64_t s = 0;
  for (; s + 4 <= seen; s += 4) {
    Vec a[4][TILE] = {};
    for (int64_t d = 0; d < depth; d++) {
      const float* p = q + d * q_stride;
      Vec in[TILE];
      SEC_UNROLL for (int j = 0; j < TILE; j++) in[j] = load(p + j * W);
      SEC_UNROLL for (int r = 0; r < 4; r++) {
        Vec w = splat(keys[(s + r) * depth + d]);
        SEC_UNROLL for (int j = 0; j < TILE; j++) a[r][j] += w * in[j];
      }
    }
    SEC_UNROLL for (int r = 0; r < 4; r++)
      SEC_UNROLL for (int j = 0; j < TILE; j++) store(scores + (s + r) * TW + j * W, a[r][j]);
  }
  for (; s < seen; s++) {
    Vec a[TILE] = {};
    for (int64_t d = 0; d < depth; d++)
      SEC_UNROLL for (int j = 0; j < TILE; j++) a[j] += splat(keys[s * depth + d]) * load(q + d * q_stride + j * W);
    SEC_UNROLL for (int j = 0; j < TILE; j++) store(scores + s * TW + j * W, a[j]);
  }
  if (mask)
    for (int64_t k = 0; k < seen; k++)
      for (int64_t t = 0; t < n_queries; t++) scores[k * TW + t] += mask[t * mask_step_q + k * mask_step_k];
  if (causal_from >= 0)
    for (int64_t k = causal_from + 1; k < seen; k++)
      for (int64_t t = 0; t < k - causal_from && t < TW; t++) scores[k * TW + t] = -__builtin_inff();
  Vec inverse[TILE];
  for (int j = 0; j < TILE; j++) {
    Vec high = splat(-__builtin_inff()), sums{};
    for (int64_t k = 0; k < seen; k++) high = larger(high, load(scores + k * TW + j * W));
    high = high == splat(-__builtin_inff()) ? Vec{} : high;  // nothing to see: zeros, as in torch
    for (int64_t k = 0; k < seen; k++) {
      Vec e = exp(load(scores + k * TW + j * W) - high);
      sums += e;
      store(scores + k * TW + j * W, e);
    }
    inverse[j] = sums == Vec{} ? Vec{} : 1.0f / sums;
  }
  for (int64_t d = 0; d < v_depth; d += 4) {
    int many = v_depth - d < 4 ? int(v_depth - d) : 4;
    const float* at[4];
    for (int r = 0; r < 4; r++) at[r] = v + (d + (r < many ? r : 0)) * v_depth_stride;
    Vec a[4][TILE] = {};
    for (int64_t k = 0; k < seen; k++) {
      const float* p = scores + k * TW;
      Vec in[TILE];
      SEC_UNROLL for (int j = 0; j < TILE; j++) in[j] = load(p + j * W);
      SEC_UNROLL for (int r = 0; r < 4; r++) {
        Vec w = splat(at[r][k * v_stride]);
        SEC_UNROLL for (int j = 0; j < TILE; j++) a[r][j] += w * in[j];
      }
    }
    for (int r = 0; r < many; r++)
      for (int j = 0; j < TILE && j * W < n_queries; j++) store(out + (d + r) * out_stride + j * W, a[r][j] * inverse[j]);
  }
}

}  // namespace SEC_ISA

#define SEC_JOIN2(a, b) a##b
#define SEC_JOIN(a, b) SEC_JOIN2(a, b)
#define SEC_TEXT2(a) #a
#define SEC_TEXT(a) SEC_TEXT2(a)

namespace secateur {
const Kernels* SEC_JOIN(kernels_, SEC_ISA)() {
  using namespace SEC_ISA;
  static const Kernels table = {
      SEC_TEXT(SEC_ISA),
      W,
      {{},
       {nullptr, rows<1, 1>, rows<1, 2>, rows<1, 3>, rows<1, 4>, rows<1, 5>, rows<1, 6>, rows<1, 7>, rows<1, 8>, rows<1, 9>, rows<1, 10>,
        rows<1, 11>, rows<1, 12>, rows<1, 13>, rows<1, 14>},
       {nullptr, rows<2, 1>, rows<2, 2>, rows<2, 3>, rows<2, 4>, rows<2, 5>, rows<2, 6>, rows<2, 7>},
       {nullptr, rows<3, 1>, rows<3, 2>, rows<3, 3>, rows<3, 4>},
       {nullptr, rows<4, 1>, rows<4, 2>, rows<4, 3>}},
      {{},
       {},
       {nullptr, blocks<2, 1>, blocks<2, 2>, blocks<2, 3>, blocks<2, 4>, blocks<2, 5>, blocks<2, 6>},
       {},
       {nullptr, blocks<4, 1>, blocks<4, 2>, blocks<4, 3>}},
      act,
      pair,
      gemv,
      depthwise,
      evens_of,
      accumulate,
      dot,
      total,
      total_lines,
      squares,
      largest,
      exponentials,
      norm_columns,
      softmax_columns,
      attend,
      TW,
  };
  return &table;
}
}  // namespace secateur
