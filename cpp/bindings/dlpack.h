// The memory layout of the DLPack protocol, version 1, and what goes through it: rows in a device's memory come in as
// views that keep the producer's memory alive, and go out the same way.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "backend/backend.h"

namespace fastsae {

// A matrix, or a vector as one column, in the memory of a device; nothing is under way to it.
struct DeviceArray {
  Memory memory;  // what keeps the elements alive
  Tensor tensor;
  Place place;
  FetchRows fetch;
  bool vector = false;
  bool read_only = false;

  bool dense() const { return tensor.stride == tensor.cols || tensor.rows <= 1; }
};

// "cpu", "cuda:1", ...
std::string place_name(Place place);
const char* dtype_name(DType dtype);

// Calls the given function with the queue to which a producer may add, or null, while nothing else does.
using WithQueue = std::function<void(const std::function<void(void*)>&)>;

// The tensor of an object with __dlpack__, in place; ValueError unless it is rows of floats or int32 that lie where they are
// wanted. The producer's work on them comes before that of the queue.
DeviceArray from_dlpack(const std::string& name, const pybind11::object& producer, Place wanted,
                        FetchRows fetch, const WithQueue& with_queue);

// A capsule that a consumer takes once, or that frees itself: of version 1 if the consumer knows it.
pybind11::capsule to_dlpack(const DeviceArray& array, const std::optional<std::pair<int, int>>& max_version);

}  // namespace fastsae
