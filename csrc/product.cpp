// Products of sparse matrices and channel-major activations: linear layers and every convolution.
//
// Channel c of the input lies at c * stride; an entry of the matrix reads it `shift` floats further on (0 in a linear layer; the
// tap's place in a convolution, whose planes are stored with zeros around them). So a nonzero is a byte offset and a weight, and
// a block of neighbouring positions stays in the cache while all nonzeros of all rows run over it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "program.h"

namespace secateur {
namespace {

struct Part {  // `height` neighbouring rows share columns: compressed sparse rows of blocks
  int64_t height, first_row, groups;
  const int32_t* starts;   // null: every column
  const int32_t* index;
  const float* values;
};

struct Choice {
  int vectors = 12, rows = 1, block = 1 << 30;
  bool pack = false, split = false;
};

struct Laid {  // one part, laid out for one choice
  RowsKernel const* kernels;
  int vectors;
  std::vector<Word> stream;
  std::vector<std::vector<Group>> groups;  // [share of the rows][block of channels]
};

class Product final : public Op {
 public:
  Product(const Program& program, const Args& a);
  void run(const Context& c) const override;
  std::string choice() const override;
  std::vector<std::vector<int>> choices(int threads) const override;
  void choose(const Program& program, const std::vector<int>& words) override;
  int64_t bytes() const override {
    int64_t total = 0;
    for (const Laid& one : laid_) total += int64_t(one.stream.size()) * 4;
    return total;
  }

 private:
  void lay(const Program& program);
  void lay_rows(const Part& part, Laid& to, int64_t stride, int share, int shares) const;
  void lay_blocks(const Part& part, Laid& to, int64_t stride, int share, int shares) const;
  Choice usual(const Program& program) const;
  int64_t in_block(int64_t column) const { return channel_[column] / choice_.block; }
  bool fits(int64_t stride) const { return (Checked(channels_ - 1) * stride + reach_) * 4 <= INT32_MAX; }  // every offset below
  bool fits_packed() const { return fits(kMostVectors * 16 + (reach_ + 15) / 16 * 16); }
  int32_t offset(int64_t column, int64_t stride) const { return int32_t((channel_[column] * stride + shift_[column]) * 4); }
  void block(const Context& c, int share, int64_t from, int64_t vectors) const;

  Tensor x_, residual_;
  Output y_;
  bool has_residual_;
  int64_t rows_, columns_, channels_, positions_, x_stride_, y_stride_, reach_ = 0, back_ = 0;
  const float* bias_;
  Ending ending_;
  const int32_t *channel_;
  std::vector<int32_t> shift_;
  std::vector<Part> parts_;
  Choice choice_;
  std::vector<Laid> laid_;
  int shares_ = 1, blocks_ = 1;
  int64_t nonzeros_ = 0;
};

// tensors: x, y, [residual] (each [channels, positions]); ints: act, tuned words (5, or vectors = 0: the usual), and for each part
// (height, first row, groups, has columns); numbers: low, high, a, b; arrays: bias, channel of each column, shift of each column,
// then (starts, index, values) or (values) of the parts.
Product::Product(const Program& program, const Args& a)
    : x_(a.tensor(0)), y_(a.output(1)), has_residual_(a.tensors.size() > 2) {
  demand(x_.rank == 2 && y_.rank == 2 && x_.in_arena() && y_.in_arena(), "a product needs two matrices");
  demand(x_.stride[1] == 1 && y_.stride[1] == 1, "a product needs neighbouring positions");
  channels_ = x_.shape[0], x_stride_ = x_.stride[0];
  rows_ = y_.shape[0], positions_ = y_.shape[1], y_stride_ = y_.stride[0];
  if (has_residual_) {
    residual_ = a.tensor(2);
    demand(residual_.rank == 2 && residual_.shape[0] == rows_ && residual_.shape[1] == positions_ && residual_.stride[1] == 1 &&
               residual_.in_arena(), "a residual has another shape");
  }
  const Array &bias = program.array(a.arrays.at(0), "f"), &channel = program.array(a.arrays.at(1), "i"),
              &shift = program.array(a.arrays.at(2), "i");
  columns_ = channel.size;
  demand(bias.size == rows_ && shift.size == columns_, "a product's arrays do not match");
  demand(rows_ <= INT32_MAX && columns_ <= INT32_MAX, "a product has more rows or columns than 32 bits count");
  bias_ = static_cast<const float*>(bias.data);
  channel_ = static_cast<const int32_t*>(channel.data);
  const int32_t* shifts = static_cast<const int32_t*>(shift.data);
  int64_t act = a.integer(0);
  demand(act >= 0 && act < int64_t(Act::last), "an unknown activation");
  ending_ = {bias_, nullptr, has_residual_ ? residual_.stride[0] : 0, a.number(0), a.number(1), true, true, Act(act), a.number(2), a.number(3)};

  int64_t least = 0, most = 0;
  demand(x_stride_ > 0, "channels run backwards");
  for (int64_t k = 0; k < columns_; k++) {
    demand(channel_[k] >= 0 && channel_[k] < channels_ && std::abs(int64_t(shifts[k])) < (1 << 24), "a column reads outside of its input");
    least = std::min<int64_t>(least, shifts[k]), most = std::max<int64_t>(most, shifts[k]);
  }
  back_ = (-least + 15) / 16 * 16;
  shift_.resize(columns_);
  for (int64_t k = 0; k < columns_; k++) shift_[k] = int32_t(shifts[k] + back_);
  reach_ = most + back_;
  int64_t whole = (positions_ + 15) / 16 * 16;  // kernels work in whole registers; the arena ends in a guard
  program.inside(x_, least, (channels_ - 1) * x_stride_ + most + positions_);
  program.inside(y_, 0, (rows_ - 1) * y_stride_ + positions_);
  demand(whole <= y_stride_ || rows_ == 1, "channels lie too close together");
  demand(!has_residual_ || whole <= residual_.stride[0] || rows_ == 1, "channels lie too close together");

  size_t array = 3, word = 6;
  std::vector<char> seen(rows_);
  for (; word < a.ints.size(); word += 4) {
    Part p{a.integer(word), a.integer(word + 1), a.integer(word + 2), nullptr, nullptr, nullptr};
    demand(p.height == 1 || p.height == 2 || p.height == 4, "blocks are 1, 2 or 4 rows high");
    demand(p.first_row >= 0 && p.groups >= 0 && Checked(p.groups) * p.height + p.first_row <= rows_, "a part has rows that are not there");
    for (int64_t r = 0; r < p.groups * p.height; r++) demand(!seen[p.first_row + r]++, "a row occurs twice");
    Checked entries = Checked(p.groups) * columns_;
    if (a.integer(word + 3)) {
      const Array &starts = program.array(a.arrays.at(array), "i"), &index = program.array(a.arrays.at(array + 1), "i");
      array += 2;
      p.starts = static_cast<const int32_t*>(starts.data), p.index = static_cast<const int32_t*>(index.data);
      demand(starts.size == p.groups + 1 && p.starts[0] == 0, "sparse rows do not begin at 0");
      for (int64_t g = 0; g < p.groups; g++) demand(p.starts[g] <= p.starts[g + 1], "sparse rows run backwards");
      entries = p.starts[p.groups];
      demand(entries == index.size, "sparse rows have another length");
      for (int64_t k = 0; k < index.size; k++) demand(p.index[k] >= 0 && p.index[k] < columns_, "a sparse column is not there");
    }
    const Array& values = program.array(a.arrays.at(array++), "f");
    demand(entries * p.height == values.size, "a product has too few or too many weights");
    p.values = static_cast<const float*>(values.data);
    nonzeros_ += values.size;
    parts_.push_back(p);
  }
  demand(std::count(seen.begin(), seen.end(), 1) == rows_, "a product has rows without weights");
  choice_ = usual(program);
  if (a.integer(1)) choose(program, {int(a.integer(1)), int(a.integer(2)), int(a.integer(3)), int(a.integer(4)), int(a.integer(5))});
  else lay(program);
}

Choice Product::usual(const Program& program) const {
  int64_t width = program.kernels()->width, registers = (positions_ + width - 1) / width;
  Choice c;
  bool blocks = parts_.size() && parts_[0].height > 1;
  double density = double(nonzeros_) / (double(rows_) * double(std::max<int64_t>(columns_, 1)));
  double taps = double(columns_) / double(std::max<int64_t>(channels_, 1));
  if (blocks) {
    c.vectors = registers > 200 && reach_ == 0 ? 2 : 3;
    if (reach_ > 0 && channels_ >= 256) c.block = 128;
  } else {
    c.rows = 2, c.vectors = registers <= 7 || (reach_ > 0 && registers > 200) ? 7 : 6;
    // Many channels: 4 registers of each, or they do not stay in the first-level cache. Few nonzeros in a row: long rows.
    if (reach_ == 0 && double(columns_) * density < 16) c.rows = 1, c.vectors = 12;
    else if ((registers % 4 == 0 && registers <= 32) || (reach_ == 0 && channels_ >= 512)) c.rows = 3, c.vectors = 4;
    // Channels at once: as many as keep their block of positions in the first-level cache, with enough nonzeros in each row.
    int64_t panel = (int64_t(c.vectors) * width + reach_) * 4, block = 64;
    while (block < 512 && (2 * block * panel <= 32768 || double(block) * taps * density < 20)) block *= 2;
    if (block < channels_) c.block = int(block);
    c.pack = fits_packed() && (reach_ > 0 ? rows_ >= 64 : double(rows_) * density > 90);  // a copy pays if every channel is read often
  }
  int64_t pieces = (registers + c.vectors - 1) / c.vectors;
  c.split = program.threads() > 1 && pieces < 2 * program.threads();
  return c;
}

void Product::choose(const Program& program, const std::vector<int>& w) {
  demand(w.size() == 5 && w[0] >= 1 && w[0] <= kMostVectors && w[1] >= 1 && w[1] <= 4 && w[2] >= 1, "an impossible choice of kernel");
  choice_ = {w[0], w[1], w[2], w[3] != 0, w[4] != 0};
  lay(program);
}

std::vector<std::vector<int>> Product::choices(int threads) const {
  std::vector<std::vector<int>> all;
  bool blocks = parts_.size() && parts_[0].height > 1;
  std::vector<std::pair<int, int>> forms = {{12, 1}, {4, 2}, {6, 2}, {7, 2}, {4, 3}};
  if (blocks) forms = {{2, 1}, {3, 1}};
  for (int block : {1 << 30, 64, 128, 256}) {
    if (block != 1 << 30 && block >= channels_) continue;
    for (auto form : forms)
      for (int pack = 0; pack < (fits_packed() ? 2 : 1); pack++)
        for (int split = 0; split < (threads > 1 ? 2 : 1); split++) all.push_back({form.first, form.second, block, pack, split});
  }
  return all;
}

std::string Product::choice() const {
  std::string text;
  for (const Part& p : parts_)
    text += (text.empty() ? "" : " + ") + (p.height > 1 ? std::to_string(p.height) + "x1" : "rows of " + std::to_string(choice_.rows)) +
            (p.starts ? "" : " (all)");
  text += ", " + std::to_string(laid_.empty() ? 0 : laid_[0].vectors) + " registers";
  if (blocks_ > 1) text += ", " + std::to_string(choice_.block) + " channels at once";
  if (choice_.pack) text += ", packed";
  if (choice_.split) text += ", rows shared out";
  return text;
}

void Product::lay(const Program& program) {
  const Kernels* k = program.kernels();
  int64_t registers = (positions_ + k->width - 1) / k->width;
  blocks_ = int((channels_ - 1) / choice_.block) + 1;
  shares_ = choice_.split ? program.threads() : 1;
  laid_.clear();
  int tightest = kMostVectors;
  for (const Part& p : parts_) {
    Laid one;
    one.kernels = p.height > 1 ? k->blocks[p.height] : k->rows[choice_.rows];
    one.vectors = int(std::min<int64_t>(choice_.vectors, registers));
    while (one.vectors > 1 && !one.kernels[one.vectors]) one.vectors--;
    tightest = std::min(tightest, one.vectors);
    laid_.push_back(std::move(one));
  }
  for (size_t i = 0; i < parts_.size(); i++) {
    Laid& one = laid_[i];
    one.vectors = tightest;
    int64_t panel = tightest * k->width + (reach_ + 15) / 16 * 16;
    int64_t stride = choice_.pack ? panel : x_stride_;
    demand(fits(stride), "activations are too large for 32-bit offsets");
    one.groups.resize(size_t(shares_) * blocks_);
    for (int s = 0; s < shares_; s++) parts_[i].height == 1 ? lay_rows(parts_[i], one, stride, s, shares_) : lay_blocks(parts_[i], one, stride, s, shares_);
  }
}

void Product::lay_rows(const Part& p, Laid& to, int64_t stride, int share, int shares) const {
  auto begin = [&](int64_t g) { return p.starts ? p.starts[g] : g * columns_; };
  auto column = [&](int64_t e) { return p.starts ? int64_t(p.index[e]) : e % columns_; };
  std::vector<int32_t> order(p.groups);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return begin(a + 1) - begin(a) < begin(b + 1) - begin(b); });
  std::vector<int32_t> mine;
  for (int64_t i = share; i < p.groups; i += shares) mine.push_back(order[i]);  // dealt out like cards: equal work
  std::vector<std::vector<int64_t>> entries(mine.size() * blocks_);
  for (size_t i = 0; i < mine.size(); i++)
    for (int64_t e = begin(mine[i]); e < begin(mine[i] + 1); e++) entries[i * blocks_ + in_block(column(e))].push_back(e);
  size_t n = choice_.rows;
  for (int b = 0; b < blocks_; b++) {
    std::vector<size_t> by(mine.size());
    std::iota(by.begin(), by.end(), 0);
    std::stable_sort(by.begin(), by.end(), [&](size_t a, size_t d) { return entries[a * blocks_ + b].size() < entries[d * blocks_ + b].size(); });
    for (size_t i = 0; i < by.size(); i += n) {
      Group g{int64_t(to.stream.size()), 0, {}};
      size_t longest = 0;
      const std::vector<int64_t>* list[4];
      for (size_t r = 0; r < n; r++) {
        size_t which = i + r < by.size() ? by[i + r] : by[i];
        g.rows[r] = int32_t(p.first_row + mine[which]);
        list[r] = &entries[which * blocks_ + b];
        longest = std::max(longest, list[r]->size());
      }
      g.steps = int32_t(longest);
      for (size_t s = 0; s < longest; s++) {  // short rows are filled up with zero weights at a place they read anyway
        for (size_t r = 0; r < n; r++) {
          Word w;
          const auto& l = *list[r];
          w.offset = s < l.size() ? offset(column(l[s]), stride) : l.empty() ? int32_t(back_ * 4) : offset(column(l.back()), stride);
          to.stream.push_back(w);
        }
        for (size_t r = 0; r < n; r++) {
          Word w;
          w.weight = s < list[r]->size() ? p.values[(*list[r])[s]] : 0.0f;
          to.stream.push_back(w);
        }
      }
      to.groups[size_t(share) * blocks_ + b].push_back(g);
    }
  }
}

void Product::lay_blocks(const Part& p, Laid& to, int64_t stride, int share, int shares) const {
  auto begin = [&](int64_t g) { return p.starts ? p.starts[g] : g * columns_; };
  auto column = [&](int64_t e) { return p.starts ? int64_t(p.index[e]) : e % columns_; };
  for (int b = 0; b < blocks_; b++) {
    auto& groups = to.groups[size_t(share) * blocks_ + b];
    for (int64_t i = share; i < p.groups; i += shares) {
      Group g{int64_t(to.stream.size()), 0, {int32_t(p.first_row + i * p.height), 0, 0, 0}};
      for (int64_t e = begin(i); e < begin(i + 1); e++) {
        if (in_block(column(e)) != b) continue;
        Word w;
        w.offset = offset(column(e), stride);
        to.stream.push_back(w);
        for (int64_t r = 0; r < p.height; r++) w.weight = p.values[e * p.height + r], to.stream.push_back(w);
        g.steps++;
      }
      groups.push_back(g);
    }
    std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& d) { return a.steps < d.steps; });
  }
}

void Product::block(const Context& c, int share, int64_t from, int64_t vectors) const {
  int width = c.k->width;
  const float* x = c.at(x_) - back_ + from * width;
  float* y = c.at(y_) + from * width;
  if (choice_.pack) {
    int64_t panel = int64_t(laid_[0].vectors) * width + (reach_ + 15) / 16 * 16, length = panel - (laid_[0].vectors - vectors) * width;
    float* packed = c.floats(channels_ * panel);
    for (int64_t ch = 0; ch < channels_; ch++) std::memcpy(packed + ch * panel, x + ch * x_stride_, size_t(length) * 4);
    x = packed;
  }
  Ending e = ending_;
  if (has_residual_) e.residual = c.at(residual_) + from * width;
  for (int b = 0; b < blocks_; b++) {
    e.first = b == 0, e.last = b == blocks_ - 1;
    for (const Laid& one : laid_) {
      const auto& groups = one.groups[size_t(share) * blocks_ + b];
      one.kernels[vectors](one.stream.data(), groups.data(), groups.data() + groups.size(), reinterpret_cast<const char*>(x), y, y_stride_, e);
    }
  }
}

void Product::run(const Context& c) const {
  int64_t width = c.k->width, registers = (positions_ + width - 1) / width, most = laid_[0].vectors;
  int64_t blocks = (registers + most - 1) / most;
  if (!choice_.split && blocks % c.threads) blocks = std::min(registers, blocks + c.threads - blocks % c.threads);
  int64_t base = registers / blocks, more = registers % blocks;  // equal blocks rather than a short last one
  auto go = [&](int64_t i, int share) { block(c, share, i * base + std::min(i, more), base + (i < more)); };
  if (choice_.split) {
    for (int s = c.thread; s < shares_; s += c.threads)
      for (int64_t i = 0; i < blocks; i++) go(i, s);
    return;
  }
  int64_t from, to;
  c.share(blocks, from, to);
  for (int64_t i = from; i < to; i++) go(i, 0);
}

// Few positions: rows of weights times one vector after the other. tensors: x [n, columns], y [n, rows];
// ints: kind of values, form (0 all columns, 1 sparse, 2 halves), act; numbers: a, b; arrays: bias, values, [starts, index | places], [scales].
class Vectors final : public Op {
 public:
  Vectors(const Program& program, const Args& a) : x_(a.tensor(0)), y_(a.output(1)), act_(Act(a.integer(2))), a_(a.number(0)), b_(a.number(1)) {
    demand(x_.rank == 2 && y_.rank == 2 && x_.shape[0] == y_.shape[0], "a product needs two matrices");
    demand((x_.stride[1] == 1 || x_.shape[1] == 1) && (y_.stride[1] == 1 || y_.shape[1] == 1), "a vector has gaps");
    demand(a.integer(2) >= 0 && a.integer(2) < int64_t(Act::last) && a.integer(0) >= 0 && a.integer(0) < 3, "an unknown activation or type");
    m_.rows = y_.shape[1], m_.columns = x_.shape[1], m_.kind = Values(a.integer(0));
    const char* type[] = {"f", "hH", "b"};
    const Array &bias = program.array(a.arrays.at(0), "f"), &values = program.array(a.arrays.at(1), type[a.integer(0)]);
    demand(bias.size == m_.rows, "a bias has another length");
    m_.bias = static_cast<const float*>(bias.data), m_.values = values.data;
    size_t next = set_rows(m_, a.integer(1), program, a, 2, values.size);
    bytes_ = values.size * (m_.kind == Values::f32 ? 4 : m_.kind == Values::f16 ? 2 : 1) + (m_.index ? values.size * 2 : m_.places ? values.size / 2 : 0);
    m_.scales = nullptr;
    if (m_.kind == Values::i8) {
      const Array& scales = program.array(a.arrays.at(next), "f");
      demand(scales.size == m_.rows, "scales have another length");
      m_.scales = static_cast<const float*>(scales.data);
    }
  }
  void run(const Context& c) const override {
    int64_t from, to;
    if (m_.index) {  // equal shares of nonzeros
      int64_t all = m_.starts[m_.rows];
      auto row_at = [&](int64_t entry) { return std::upper_bound(m_.starts, m_.starts + m_.rows, int32_t(entry)) - m_.starts; };
      from = c.thread == 0 ? 0 : row_at(all * c.thread / c.threads);
      to = c.thread + 1 == c.threads ? m_.rows : row_at(all * (c.thread + 1) / c.threads);
    } else {
      c.share(m_.rows, from, to, 4);
    }
    for (int64_t n = 0; n < x_.shape[0] && from < to; n++) {
      float* y = c.at(y_) + n * y_.stride[0];
      c.k->gemv(m_, from, to, c.at(x_) + n * x_.stride[0], y);
      if (act_ != Act::none) c.k->act(act_, a_, b_, y + from, y + from, to - from);
    }
  }
  std::string choice() const override {
    const char* names[] = {"float32", "float16", "int8"};
    return std::string(m_.index ? "sparse" : m_.places ? "half" : "dense") + " rows times a vector, " + names[int(m_.kind)];
  }
  int64_t bytes() const override { return bytes_; }

 private:
  Tensor x_;
  Output y_;
  Gemv m_;
  Act act_;
  float a_, b_;
  int64_t bytes_;
};

}  // namespace

Maker find_product(const std::string& kind) {
  if (kind == "product") return make<Product>;
  if (kind == "vectors") return make<Vectors>;
  return nullptr;
}

}  // namespace secateur
