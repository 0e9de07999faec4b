// What the bindings share: argument checks that raise ValueError in Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "ops.h"

namespace py = pybind11;
using namespace clonewave;

// Contiguous float32, taken as they are: a converted copy of a state would lose its update.
using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int64_t, py::array::c_style>;

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class Array>
void require_shape(const Array& array, std::vector<int64_t> shape, const std::string& name) {
  bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = array.shape(i) == shape[i];
  if (same) return;
  std::string text = name + ": need shape [";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  throw std::invalid_argument(text + "]");
}

inline Precision precision_of(const std::string& name) {
  if (name == "float32") return Precision::kFloat32;
  if (name == "bfloat16") return Precision::kBfloat16;
  if (name == "int16") return Precision::kInt16;
  if (name == "int8") return Precision::kInt8;
  throw std::invalid_argument("precision " + name + ": float32, bfloat16, int16 or int8");
}

void bind_decoder(py::module_& m);
