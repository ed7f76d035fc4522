// The module `secateur_engine._engine`: programs for Python. Nothing here is needed to run one; the GIL is released while it runs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <exception>

#include "program.h"

namespace nb = nanobind;
using namespace secateur;

namespace {

using View = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
// space, id, offset, shape, strides, and how it moves from stripe to stripe: for a row, for an image
using Place = std::tuple<int, int64_t, int64_t, std::vector<int64_t>, std::vector<int64_t>, int64_t, int64_t>;

Array array_of(const View& view) {
  auto is = [&](nb::dlpack::dtype_code code, int bits) { return view.dtype().code == uint8_t(code) && view.dtype().bits == bits; };
  using Code = nb::dlpack::dtype_code;
  char type = is(Code::Float, 32)  ? 'f'
              : is(Code::Float, 16) ? 'h'
              : is(Code::Int, 8)    ? 'b'
              : is(Code::UInt, 16)  ? 'H'
              : is(Code::Int, 32)   ? 'i'
                                    : 0;
  demand(type, "a constant has a type that the engine does not know");
  demand(reinterpret_cast<uintptr_t>(view.data()) % 4 == 0, "a constant is not aligned");
  return {view.data(), int64_t(view.size()), type};
}

Tensor tensor_of(const Place& place) {
  const auto& [space, id, offset, shape, strides, row_step, image_step] = place;
  demand(space >= 0 && space <= 4 && shape.size() == strides.size() && shape.size() <= kMostDims, "a tensor makes no sense");
  Tensor t;
  t.space = Space(space), t.id = id, t.offset = offset, t.rank = int(shape.size()), t.row_step = row_step, t.image_step = image_step;
  for (int d = 0; d < t.rank; d++) t.shape[d] = shape[d], t.stride[d] = strides[d];
  return t;
}

struct Engine {  // a program, and the arrays that it reads, kept alive
  Program program;
  std::vector<nb::object> kept;

  Engine(int64_t arena, int64_t state, std::vector<int64_t> slots, int threads, const std::string& kernels, int64_t local)
      : program(arena, local, state, std::move(slots), threads, found(kernels)) {}
  static const Kernels* found(const std::string& name) {
    const Kernels* k = pick(name.c_str());
    demand(k, "this CPU or this build lacks the kernels asked for");
    return k;
  }
  int64_t constant(nb::object object) {
    Array a = array_of(nb::cast<View>(object));
    kept.push_back(object);
    return program.constant(a);
  }
  void add(const std::string& kind, const std::vector<Place>& tensors, std::vector<int64_t> ints, std::vector<double> numbers, std::vector<int64_t> arrays) {
    Args args;
    for (const Place& place : tensors) args.tensors.push_back(tensor_of(place));
    args.ints = std::move(ints), args.numbers = std::move(numbers), args.arrays = std::move(arrays);
    program.add(kind, args);
  }
  std::vector<double> run(const std::vector<Floats>& slots, nb::object state, int64_t position, bool timed, nb::object outside, bool alone) {
    demand(slots.size() == program.slots().size(), "a program is called with another number of inputs and outputs");
    std::vector<float*> places;
    for (size_t k = 0; k < slots.size(); k++) {
      demand(int64_t(slots[k].size()) == program.slots()[k], "an input or output has another size");
      places.push_back(slots[k].data());
    }
    Floats held;
    float* memory = nullptr;
    if (program.state_size()) {
      held = nb::cast<Floats>(state);
      demand(int64_t(held.size()) >= program.state_size() + 2 * kGuard, "the state is too small");
      memory = held.data() + kGuard;
    }
    demand(position >= 0, "a position before the beginning");
    std::vector<double> seconds(timed ? program.size() : 0);
    std::exception_ptr failure;
    std::function<void(int64_t)> call = [&](int64_t which) {
      nb::gil_scoped_acquire hold;
      if (failure) return;
      try {
        outside(which);
      } catch (...) {
        failure = std::current_exception();
      }
    };
    {
      nb::gil_scoped_release release;
      program.run(places.data(), memory, position, timed ? seconds.data() : nullptr, outside.is_none() ? nullptr : &call, alone);
    }
    if (failure) std::rethrow_exception(failure);
    return seconds;
  }
};

}  // namespace

NB_MODULE(_engine, m) {
  nb::exception<Refused>(m, "Refused", PyExc_ValueError);
  m.def("kernels", [](const std::string& wish) { const Kernels* k = pick(wish.c_str()); return std::string(k ? k->name : ""); }, nb::arg("wish") = "");
  nb::class_<Engine>(m, "Program")
      .def(nb::init<int64_t, int64_t, std::vector<int64_t>, int, std::string, int64_t>(), nb::arg("arena"), nb::arg("state"), nb::arg("slots"),
           nb::arg("threads"), nb::arg("kernels") = "", nb::arg("local") = 0)
      .def("constant", &Engine::constant)
      .def("add", &Engine::add)
      .def("complete", [](const Engine& e) { e.program.complete(); })
      .def("run", &Engine::run, nb::arg("slots"), nb::arg("state").none(), nb::arg("position") = 0, nb::arg("timed") = false,
           nb::arg("outside") = nb::none(), nb::arg("alone") = false)
      .def("tune", [](Engine& e, size_t op, int rounds) { return e.program.tune(op, rounds); })
      .def("choice", [](const Engine& e, size_t op) { return e.program.choice(op); })
      .def("nbytes", [](const Engine& e, size_t op) { return e.program.bytes(op); })
      .def("__len__", [](const Engine& e) { return e.program.size(); });
}
