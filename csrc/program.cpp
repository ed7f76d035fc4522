#include "program.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#define SEC_PAUSE() _mm_pause()
#else
#define SEC_PAUSE() std::this_thread::yield()
#endif

namespace secateur {

void demand(bool truth, const char* what) {
  if (!truth) throw Refused(what);
}

int64_t Tensor::numel() const {
  int64_t n = 1;
  for (int d = 0; d < rank; d++) n *= shape[d];
  return n;
}

int64_t Args::integer(size_t k) const {
  demand(k < ints.size(), "an operation lacks an integer");
  return ints[k];
}
float Args::number(size_t k) const {
  demand(k < numbers.size(), "an operation lacks a number");
  return float(numbers[k]);
}
const Tensor& Args::tensor(size_t k) const {
  demand(k < tensors.size(), "an operation lacks a tensor");
  return tensors[k];
}

Output Args::output(size_t k) const {
  demand(tensor(k).space != Space::constant, "a constant cannot be written");
  return {tensor(k)};
}

const float* Context::at(const Tensor& t) const {
  if (t.space == Space::constant) return static_cast<const float*>((*constants)[t.id].data) + t.offset;
  return at(Output{t});
}

float* Context::at(const Output& t) const {
  int64_t offset = t.offset + t.row_step * row + t.image_step * image;
  switch (t.space) {
    case Space::arena: return arena + offset;
    case Space::local: return local + offset;
    case Space::state: return state + offset;
    default: return slots[t.id] + offset;
  }
}

float* Context::floats(Checked n) const {
  int64_t size = (n + 64).value();  // room to align
  if (int64_t(scratch->size()) < size) scratch->resize(size);
  auto p = reinterpret_cast<uintptr_t>(scratch->data());
  return reinterpret_cast<float*>((p + 63) / 64 * 64);
}

void Context::share(int64_t total, int64_t& from, int64_t& to, int64_t grain) const {
  int64_t grains = (total + grain - 1) / grain;
  from = std::min(total, grains * thread / threads * grain);
  to = std::min(total, grains * (thread + 1) / threads * grain);
}

void Barrier::wait(int threads) {
  if (threads == 1) return;
  int mine = round.load(std::memory_order_acquire);
  if (waiting.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
    waiting.store(0, std::memory_order_relaxed);
    round.store(mine + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round.load(std::memory_order_acquire) == mine; spins++) {
    if (spins < 2000) SEC_PAUSE();
    else std::this_thread::yield();  // somebody else needs the core
  }
}

namespace {

// The first error of the threads of one call, kept for the caller: none may leave a worker. After it, no thread begins anything,
// but all still meet at the barriers.
class Failure {
 public:
  template <class F>
  void guard(F work) {
    if (happened_.load(std::memory_order_relaxed)) return;
    try {
      work();
    } catch (...) {
      if (!happened_.exchange(true)) error_ = std::current_exception();
    }
  }
  void raise() const {  // when every thread is done
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::atomic<bool> happened_{false};
  std::exception_ptr error_;
};

// Threads that wait for work: awake for a moment after each piece, then asleep.
class Pool {
 public:
  explicit Pool(int threads) : process_(getpid()) {
    try {
      for (int t = 1; t < threads; t++) workers_.emplace_back([this, t] { serve(t); });
    } catch (...) {  // the system gives no more threads
      close();
      throw;
    }
  }
  ~Pool() { close(); }
  void run(const std::function<void(int)>& work) {
    work_ = &work;
    left_.store(int(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> guard(lock_);
      piece_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work(0);
    for (int spins = 0; left_.load(std::memory_order_acquire); spins++) {
      if (spins < 2000) SEC_PAUSE();
      else std::this_thread::yield();
    }
  }
  bool of_this_process() const { return process_ == getpid(); }

 private:
  void close() {
    {
      std::lock_guard<std::mutex> guard(lock_);
      closing_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }
  void serve(int t) {
    int done = 0;
    while (true) {
      for (int spins = 0; spins < 4000 && piece_.load(std::memory_order_acquire) == done; spins++) SEC_PAUSE();
      if (piece_.load(std::memory_order_acquire) == done) {
        std::unique_lock<std::mutex> guard(lock_);
        wake_.wait(guard, [&] { return closing_ || piece_.load(std::memory_order_acquire) != done; });
        if (closing_) return;
      }
      done++;
      (*work_)(t);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }
  pid_t process_;
  std::vector<std::thread> workers_;
  std::mutex lock_;
  std::condition_variable wake_;
  bool closing_ = false;
  std::atomic<int> piece_{0}, left_{0};
  const std::function<void(int)>* work_ = nullptr;
};

struct Lease {  // a pool for one call; null if it is busy or one thread is enough
  explicit Lease(int threads) {
    static std::mutex registry;
    static auto* pools = new std::vector<std::pair<int, std::shared_ptr<std::pair<std::mutex, std::unique_ptr<Pool>>>>>();
    if (threads < 2) return;
    std::lock_guard<std::mutex> guard(registry);
    for (auto& known : *pools)
      if (known.first == threads) held_ = known.second;
    if (!held_) {
      held_ = std::make_shared<std::pair<std::mutex, std::unique_ptr<Pool>>>();
      pools->emplace_back(threads, held_);
    }
    busy_ = std::unique_lock<std::mutex>(held_->first, std::try_to_lock);
    if (!busy_) return;
    if (held_->second && !held_->second->of_this_process()) held_->second.release();  // its threads stayed in the parent
    if (!held_->second) held_->second = std::make_unique<Pool>(threads);
    pool = held_->second.get();
  }
  Pool* pool = nullptr;

 private:
  std::shared_ptr<std::pair<std::mutex, std::unique_ptr<Pool>>> held_;
  std::unique_lock<std::mutex> busy_;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

Program::Program(int64_t arena, int64_t local, int64_t state, std::vector<int64_t> slots, int threads, const Kernels* kernels)
    : arena_(arena), local_(local), state_(state), slots_(std::move(slots)), threads_(threads), kernels_(kernels) {
  for (int64_t n : {arena, local, state}) demand(n >= 0 && n < kMostFloats, "an impossible amount of memory");
  demand(threads >= 1 && threads <= 256, "an impossible number of threads");
  for (int64_t n : slots_) demand(n >= 0 && n < kMostFloats, "an impossible amount of memory");
}

int64_t Program::constant(Array a) {
  constants_.push_back(a);
  return int64_t(constants_.size()) - 1;
}

const Array& Program::array(int64_t id, const char* types) const {
  demand(id >= 0 && id < int64_t(constants_.size()), "an operation names a constant that is not there");
  demand(std::string(types).find(constants_[id].type) != std::string::npos, "a constant has the wrong type");
  return constants_[id];
}

void Program::inside(const Tensor& t, Checked low, Checked high) const {
  int64_t size = 0;
  if (t.space == Space::arena) size = arena_;
  else if (t.space == Space::local) size = local_;
  else if (t.space == Space::state) size = state_;
  else if (t.space == Space::slot) {
    demand(t.id >= 0 && t.id < int64_t(slots_.size()), "an operation names an input or output that is not there");
    size = slots_[t.id];
  } else size = array(t.id, "f").size;
  demand(t.offset >= 0 && t.offset <= size && low <= high && low + t.offset >= 0 && high + t.offset + t.farthest <= size,
         "an operation reaches outside of its memory");
}

void Program::inside(const Tensor& t) const {
  Checked low = 0, high = 1, elements = 1;
  demand(t.rank >= 0 && t.rank <= kMostDims, "a tensor has too many dimensions");
  for (int d = 0; d < t.rank; d++) {
    demand(t.shape[d] > 0 && t.shape[d] < kMostFloats, "a tensor has an impossible size");
    demand(t.stride[d] > -(int64_t(1) << 28) && t.stride[d] < kMostFloats, "a tensor has an impossible stride");
    Checked reach = Checked(t.shape[d] - 1) * t.stride[d];
    elements = elements * t.shape[d];  // more than there are floats where a stride is 0
    demand(elements < kMostElements && reach < kMostElements && reach > -kMostElements, "a tensor is impossibly large");
    (reach < 0 ? low : high) = (reach < 0 ? low : high) + reach;
  }
  inside(t, low, high);
}

static void set_sparse(Gemv& m, const Array& starts, const Array& index, int64_t values) {
  m.starts = static_cast<const int32_t*>(starts.data), m.index = static_cast<const uint16_t*>(index.data);
  demand(starts.size == m.rows + 1 && m.starts[0] == 0 && m.starts[m.rows] == index.size && index.size == values, "sparse rows do not match");
  for (int64_t r = 0; r < m.rows; r++) demand(m.starts[r] <= m.starts[r + 1], "sparse rows run backwards");
  for (int64_t k = 0; k < index.size; k++) demand(m.index[k] < m.columns, "a sparse column is not there");
}

size_t set_rows(Gemv& m, int64_t form, const Program& program, const Args& a, size_t at, int64_t values) {
  m.starts = nullptr, m.index = nullptr, m.places = nullptr;
  demand(form >= 0 && form <= 2, "an unknown form of rows");
  if (form == 1) {
    set_sparse(m, program.array(a.arrays.at(at), "i"), program.array(a.arrays.at(at + 1), "H"), values);
    return at + 2;
  }
  if (form == 2) {
    const Array& places = program.array(a.arrays.at(at), "i");
    Checked words = Checked(m.rows) * ((m.columns + 15) / 16);
    demand(words == places.size && words * 8 == values, "halves have another size");
    m.places = static_cast<const int32_t*>(places.data);
    return at + 1;
  }
  demand(Checked(m.rows) * m.columns == values, "a matrix has another size");
  return at;
}

Maker maker_of(const std::string& kind) {
  for (auto find : {find_product, find_spatial, find_tensor, find_sequence})
    if (Maker maker = find(kind)) return maker;
  return nullptr;
}

void Program::add(const std::string& kind, const Args& args) {
  if (kind == "stripes") {
    demand(!open_, "stripes within stripes");
    auto stripes = std::make_unique<Stripes>(args);
    around_ = stripes.get(), open_ = stripes->ops(), moves_ = {};
    ops_.push_back(std::move(stripes));
    alone_.push_back(false);
    return;
  }
  Maker maker = maker_of(kind);
  if (!maker) throw Refused("there is no operation '" + kind.substr(0, 40) + "'");
  Args moved = args;
  for (Tensor& t : moved.tensors) {
    demand(t.row_step >= 0 && t.image_step >= 0, "a tensor moves backwards");
    demand(open_ || (t.space != Space::local && !t.row_step && !t.image_step), "a tensor moves, or is local, where there are no stripes");
    if (open_) t.farthest = (Checked(around_->images - 1) * t.image_step + Checked(around_->stripes - 1) * around_->rows * t.row_step).value();
    inside(t);
    moves_.first |= t.row_step > 0, moves_.second |= t.image_step > 0;
  }
  std::unique_ptr<Op> op = maker(*this, moved);
  demand(op->scratch(*kernels_) <= kMostScratch, "an operation needs too much scratch");
  demand(!open_ || op->parallel(), "an operation cannot run in stripes");
  ops_.push_back(std::move(op));
  alone_.push_back(open_ > 0);
  if (open_ && !--open_)  // so that there are no more stripes than memory
    demand((around_->stripes == 1 || moves_.first) && (around_->images == 1 || moves_.second), "stripes of nothing");
}

Stripes::Stripes(const Args& a)
    : begin(a.integer(0)), follow(a.integer(1)), images(a.integer(2)), stripes(a.integer(3)), rows(a.integer(4)), written(a.integer(5)),
      apart(a.integer(6)) {
  demand(begin > 0 && begin < (1 << 20) && follow >= 0 && follow < (1 << 20) && images > 0 && stripes > 0 && rows > 0 && written > 0 && written < kMostFloats, "impossible stripes");
  demand(Checked(images) * stripes < INT32_MAX && Checked(stripes) * rows < INT32_MAX, "impossible stripes");
}

std::string Stripes::choice() const {
  return std::to_string(stripes) + " stripes of " + std::to_string(rows) + (rows == 1 ? " row" : " rows");
}

void Program::run_stripes(size_t first, const Stripes& s, const Context& c, double* seconds) const {
  int64_t from = 0, to = s.images * s.stripes;
  int64_t width = kernels_->width;
  if ((s.written + width - 1) / width * width <= s.apart) c.share(to, from, to);
  else if (c.thread) return;
  Context alone = c;
  alone.threads = 1, alone.thread = 0;
  for (int64_t i = from; i < to; i++) {
    alone.image = i / s.stripes, alone.row = i % s.stripes * s.rows;
    bool begins = i == from || alone.row == 0 || !s.follow;
    for (int64_t k = begins ? 0 : s.begin, end = begins ? s.begin : s.ops(); k < end; k++) {
      double start = seconds ? now() : 0;
      ops_[first + k]->run(alone);
      if (seconds) seconds[first + k] += now() - start;
    }
  }
}

std::unique_ptr<float[]> Program::borrow() {
  {
    std::lock_guard<std::mutex> guard(lock_);
    if (!arenas_.empty()) {
      auto arena = std::move(arenas_.back());
      arenas_.pop_back();
      return arena;
    }
  }
  return std::unique_ptr<float[]>(new float[arena_ + 2 * kGuard + threads_ * ((local_ + 15) / 16 * 16 + kGuard) + 16]());
}

void Program::give_back(std::unique_ptr<float[]> arena) {
  std::lock_guard<std::mutex> guard(lock_);
  if (arenas_.size() < 4) arenas_.push_back(std::move(arena));
}

static float* aligned(float* p) { return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64) + kGuard; }

void Program::run(float* const* slots, float* state, int64_t position, double* seconds, const std::function<void(int64_t)>* outside, bool alone) {
  auto arena = borrow();
  run_in(aligned(arena.get()), slots, state, position, seconds, outside, alone ? 1 : threads_);
  give_back(std::move(arena));
}

void Program::run_in(float* arena, float* const* slots, float* state, int64_t position, double* seconds,
                     const std::function<void(int64_t)>* outside, int wanted) {
  complete();
  Lease lease(wanted);
  int threads = lease.pool ? wanted : 1;
  Barrier barrier;
  Failure failure;
  std::function<void(int)> work = [&](int thread) {
    static thread_local std::vector<float> scratch;
    Context c{arena, local(arena, thread), state, slots, &constants_, kernels_, position, thread, threads, &scratch, outside};
    for (size_t k = 0; k < ops_.size(); k++) {
      double start = seconds ? now() : 0;
      size_t here = k;
      if (auto stripes = dynamic_cast<const Stripes*>(ops_[k].get())) {
        failure.guard([&] { run_stripes(here + 1, *stripes, c, thread ? nullptr : seconds); });
        k += size_t(stripes->ops());
      } else if (ops_[k]->parallel()) {
        failure.guard([&] { ops_[k]->run(c); });
      } else if (thread == 0) {
        Context alone = c;
        alone.threads = 1;
        failure.guard([&] { ops_[k]->run(alone); });
      }
      barrier.wait(threads);
      if (seconds && thread == 0) {
        seconds[here] = now() - start;
        for (size_t inner = here + 1; inner <= k; inner++) seconds[here] -= seconds[inner];
      }
    }
  };
  if (lease.pool) lease.pool->run(work);
  else work(0);
  failure.raise();
}

std::vector<int> Program::tune(size_t op, int rounds) {
  Op& one = *ops_.at(op);
  auto arena = borrow();
  std::vector<float> slot_memory;
  int64_t total = 0;
  for (int64_t n : slots_) total += n;
  slot_memory.resize(total + state_ + 64);
  std::vector<float*> slots;
  float* at = slot_memory.data();
  for (int64_t n : slots_) slots.push_back(at), at += n;
  std::vector<int> best;
  double shortest = 1e30;
  const int all = alone_[op] ? 1 : threads_;
  for (const auto& choice : one.choices(all)) {
    one.choose(*this, choice);
    double took = 1e30;
    for (int r = 0; r < rounds; r++) {
      Lease lease(all);
      int threads = lease.pool ? all : 1;
      Failure failure;
      std::function<void(int)> work = [&](int thread) {
        static thread_local std::vector<float> scratch;
        float* memory = aligned(arena.get());
        failure.guard([&] { one.run(Context{memory, local(memory, thread), at, slots.data(), &constants_, kernels_, 0, thread, threads, &scratch, nullptr}); });
      };
      double start = now();
      if (lease.pool) lease.pool->run(work);
      else work(0);
      failure.raise();
      double seconds = now() - start;
      took = std::min(took, seconds);
      if (r == 1 && took > 2 * shortest) break;
    }
    if (took < shortest) shortest = took, best = choice;
  }
  if (!best.empty()) one.choose(*this, best);
  give_back(std::move(arena));
  return best;
}

Walk::Walk(Tensors tensors) : operands(int(tensors.size())) {
  const Tensor* t[4] = {};
  int count = 0;
  for (const Tensor* one : tensors) t[count++] = one;
  int order[kMostDims], dims = 0;
  for (int d = 0; d < t[0]->rank; d++) {
    for (int o = 1; o < count; o++) demand(t[o]->rank == t[0]->rank && t[o]->shape[d] == t[0]->shape[d], "shapes differ");
    if (t[0]->shape[d] != 1) order[dims++] = d;
  }
  std::stable_sort(order, order + dims, [&](int a, int b) { return t[0]->stride[a] > t[0]->stride[b]; });
  for (int i = 0; i < dims; i++) {
    bool merges = rank > 0;
    for (int o = 0; merges && o < count; o++) merges = stride[o][rank - 1] == t[o]->stride[order[i]] * t[o]->shape[order[i]];
    if (!merges) rank++, shape[rank - 1] = 1;
    shape[rank - 1] *= t[0]->shape[order[i]];
    for (int o = 0; o < count; o++) stride[o][rank - 1] = t[o]->stride[order[i]];
  }
}

int64_t Walk::outer() const {
  int64_t n = 1;
  for (int d = 0; d + 1 < rank; d++) n *= shape[d];
  return n;
}

void Walk::at(int64_t index, int64_t* offsets) const {
  for (int o = 0; o < operands; o++) offsets[o] = 0;
  for (int d = rank - 2; d >= 0 && index; d--) {
    int64_t k = index % shape[d];
    index /= shape[d];
    for (int o = 0; o < operands; o++) offsets[o] += k * stride[o][d];
  }
}

const Kernels* pick(const char* wish) {
  std::string name = wish;
  const Kernels *wide = kernels_avx512(), *middle = kernels_avx2();
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512dq"))
    wide = nullptr;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) middle = nullptr;
#endif
  if (name == "avx512") return wide;
  if (name == "avx2") return middle;
  if (name == "baseline") return kernels_baseline();
  if (!name.empty()) return nullptr;
  return wide ? wide : middle ? middle : kernels_baseline();
}

}  // namespace secateur
