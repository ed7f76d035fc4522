// One SIMD register of floats in the GCC/Clang vector extensions, as wide as the flags of this object allow.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define SEC_WIDTH 16
#elif defined(__AVX__)
#define SEC_WIDTH 8
#else
#define SEC_WIDTH 4  // SSE2, NEON, or whatever the compiler makes of it
#endif

#define SEC_UNROLL _Pragma("GCC unroll 16")
#define SEC_INLINE static inline __attribute__((always_inline))

namespace SEC_ISA {

constexpr int W = SEC_WIDTH;
typedef float Vec __attribute__((vector_size(W * 4)));
typedef float Loose __attribute__((vector_size(W * 4), aligned(4), may_alias));  // a register anywhere in memory
typedef int32_t Ints __attribute__((vector_size(W * 4)));

SEC_INLINE Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
SEC_INLINE void store(float* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }
SEC_INLINE Vec splat(float x) { return x - Vec{}; }
// Written so that NaN stays NaN, as torch's clamp and relu keep it.
SEC_INLINE Vec at_least(Vec v, Vec low) { return v < low ? low : v; }
SEC_INLINE Vec at_most(Vec v, Vec high) { return v > high ? high : v; }
SEC_INLINE Vec larger(Vec a, Vec b) { return (a > b) | (a != a) ? a : b; }  // either NaN gives NaN
SEC_INLINE Vec smaller(Vec a, Vec b) { return (a < b) | (a != a) ? a : b; }

SEC_INLINE float sum(Vec v) {
  float s[W / 2];
  SEC_UNROLL for (int i = 0; i < W / 2; i++) s[i] = v[i] + v[i + W / 2];
  SEC_UNROLL for (int half = W / 4; half > 0; half /= 2)
    SEC_UNROLL for (int i = 0; i < half; i++) s[i] += s[i + half];
  return s[0];
}

#if SEC_WIDTH == 16
#define SEC_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define SEC_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif SEC_WIDTH == 8
#define SEC_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define SEC_ODD 1, 3, 5, 7, 9, 11, 13, 15
#else
#define SEC_EVEN 0, 2, 4, 6
#define SEC_ODD 1, 3, 5, 7
#endif
#if defined(__clang__) || __GNUC__ >= 12
SEC_INLINE Vec evens(Vec a, Vec b) { return __builtin_shufflevector(a, b, SEC_EVEN); }
SEC_INLINE Vec odds(Vec a, Vec b) { return __builtin_shufflevector(a, b, SEC_ODD); }
#else
SEC_INLINE Vec evens(Vec a, Vec b) { return __builtin_shuffle(a, b, Ints{SEC_EVEN}); }
SEC_INLINE Vec odds(Vec a, Vec b) { return __builtin_shuffle(a, b, Ints{SEC_ODD}); }
#endif

// e^x (Cephes' polynomial): relative error about 2e-7; 0 below -87.3, infinity above 88.7.
SEC_INLINE Vec exp(Vec x) {
  Vec clamped = at_most(at_least(x, splat(-87.3f)), splat(88.3f));
  Vec scaled = clamped * 1.44269504f;
  Ints whole = __builtin_convertvector(scaled + (scaled < 0 ? splat(-0.5f) : splat(0.5f)), Ints);
  Vec n = __builtin_convertvector(whole, Vec);
  Vec f = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 0.5f;
  p = p * (f * f) + (f + 1.0f);
  Ints bits = (whole + 127) << 23;
  Vec power;
  std::memcpy(&power, &bits, sizeof power);
  Vec value = p * power;
  value = x < -87.3f ? Vec{} : value;
  value = x > 88.7f ? splat(__builtin_inff()) : value;
  return x != x ? x : value;
}

// Abramowitz & Stegun 7.1.26: absolute error at most 1.5e-7.
SEC_INLINE Vec erf(Vec x) {
  Vec magnitude = x < 0 ? -x : x;
  Vec t = 1.0f / (magnitude * 0.3275911f + 1.0f);
  Vec p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  Vec value = 1.0f - p * t * exp(-magnitude * magnitude);
  value = x < 0 ? -value : value;
  return x != x ? x : value;
}

SEC_INLINE Vec sigmoid(Vec x) { return 1.0f / (exp(-x) + 1.0f); }
SEC_INLINE Vec tanh(Vec x) {  // by x - x^3/3 near zero, where the difference below would cancel
  Vec e = exp(2.0f * x), far = 1.0f - 2.0f / (e + 1.0f), x2 = x * x;
  Vec near = x * (1.0f + x2 * (-0.33333333f + x2 * (0.13333333f - x2 * 0.05396825f)));
  Vec small = x2 < 0.04f ? near : far;
  return x != x ? x : small;
}

}  // namespace SEC_ISA
