// What every instruction set implements: plain functions over plain memory. The executor (program.cpp) knows nothing else about
// the CPU. Objects of one instruction set instantiate no library templates, so that the linker cannot mix them up.
#pragma once
#include <cstdint>

namespace secateur {

union Word {  // the streams hold byte offsets and weights in turn
  int32_t offset;
  float weight;
};

// Rows that are computed together: `steps` steps from `at`, which is counted in words.
struct Group {
  int64_t at;
  int32_t steps, rows[4];
};

enum class Act : int {
  none, clip, gelu, gelu_tanh, silu, sigmoid, tanh, hardswish, hardsigmoid, leaky, exp, neg, sqrt, rsqrt, abs, erf, log, elu,
  softplus, affine, power, sin, cos, reciprocal, mish, last
};
enum class Pair : int { add, sub, mul, div, max, min, prelu, lt, le, gt, ge, eq, ne, pow, last };

// How a product of sparse rows ends: bias, residual, limits, activation.
struct Ending {
  const float* bias;
  const float* residual;  // or null
  int64_t residual_stride;
  float low, high;
  bool first, last;  // of the blocks of input channels
  Act act;
  float a, b;
};

using RowsKernel = void (*)(const Word* stream, const Group* from, const Group* to, const char* x, float* y, int64_t stride,
                            const Ending& ending);

constexpr int kMostVectors = 14;

enum class Values : int { f32, f16, i8 };

// Rows of one of three forms: compressed sparse ones with 16-bit columns (`index`); halves, of which every 8 neighbouring columns keep 4
// (`places`: for 16 columns a word of eight 3-bit places, the first four within the first 8); or all columns.
struct Gemv {
  int64_t rows, columns;
  const int32_t* starts;
  const uint16_t* index;
  const int32_t* places;
  const void* values;
  const float* scales;  // of int8 rows; null otherwise
  const float* bias;
  Values kind;
};

struct Depthwise {
  int64_t pitch;      // of the input's rows
  int32_t height, width, stride, dilation_y, dilation_x;
  int32_t out_height, out_width;
  int64_t out_pitch;
  int64_t span;  // floats that one channel of the output spans (stride 1: computed in one run, gaps included)
};

struct Kernels {
  const char* name;
  int width;  // floats in a register
  RowsKernel rows[5][kMostVectors + 1];    // [rows at once][registers]: unstructured
  RowsKernel blocks[5][kMostVectors + 1];  // [2 or 4 rows that share columns][registers]
  void (*act)(Act kind, float a, float b, const float* x, float* y, int64_t n);
  void (*pair)(Pair kind, const float* x, int64_t x_step, const float* y, int64_t y_step, float* out, int64_t n);  // steps 0 or 1
  void (*gemv)(const Gemv& m, int64_t row, int64_t end, const float* x, float* y);
  void (*depthwise)(const Depthwise& d, const float* x, const float* weights, float bias, float low, float high, float* y);
  void (*evens)(const float* x, float* y, int64_t n);  // y[i] = x[2i]
  void (*accumulate)(float w, const float* x, float* y, int64_t n);  // y += w x
  float (*dot)(const float* x, const float* y, int64_t n);
  float (*total)(const float* x, int64_t n);
  float (*total_lines)(const float* x, int64_t pitch, int64_t lines, int64_t n);  // reads whole registers
  float (*squares)(const float* x, float mean, int64_t n, float* rest);  // sum of (x - mean)^2; rest += sum of x - mean
  float (*largest)(const float* x, int64_t n);
  float (*exponentials)(float* x, float highest, int64_t n);  // x = e^(x - highest), and their sum
  // Norm over `channels` at `stride` for n <= 2 registers of neighbouring positions; weight and bias may be null.
  void (*norm_columns)(const float* x, int64_t stride, int64_t channels, const float* weight, const float* bias, float eps, bool centred,
                       float* y, int64_t y_stride, int64_t n);
  void (*softmax_columns)(const float* x, int64_t stride, int64_t channels, float* y, int64_t y_stride, int64_t n);
  // One tile of attention: 3 registers of queries against all keys. keys: [key][depth] packed and scaled; scores: scratch.
  void (*attend)(const float* q, int64_t q_stride, const float* keys, const float* v, int64_t v_depth_stride, int64_t v_stride,
                 int64_t n_keys, int64_t depth, int64_t v_depth, const float* mask, int64_t mask_step_q, int64_t mask_step_k, int64_t causal_from,
                 float* scores, float* out, int64_t out_stride, int64_t n_queries);
  int attend_width;  // queries in a tile
};

const Kernels* kernels_baseline();
const Kernels* kernels_avx2();    // null where this build has none
const Kernels* kernels_avx512();
const Kernels* pick(const char* wish);  // "", "baseline", "avx2", "avx512"; null where the CPU lacks it

}  // namespace secateur
