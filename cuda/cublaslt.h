// Large products by NVIDIA's cuBLASLt, where that library is: it is found at run time, so that neither building nor
// installing fastsae needs it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "choice.h"

struct CUstream_st;  // a cudaStream_t is a pointer to it

namespace fastsae::cuda {

// The library by its documented ABI: handles and descriptions are pointers to what only the library knows, and a
// status of 0 is success.
namespace lt {

using Opaque = void*;
using Status = int;

enum DataType : int { kFloat = 0, kDouble = 1, kBf16 = 14 };
enum Compute : int { kCompute32 = 68, kCompute64 = 70, kComputeTf32 = 77 };
enum DescriptionAttribute : int { kTransposeA = 3, kTransposeB = 4 };
enum PreferenceAttribute : int {
  kMostWorkspace = 1,
  kReductionSchemes = 3,
  kAlignmentA = 5,
  kAlignmentB = 6,
  kAlignmentC = 7,
  kAlignmentD = 8
};
// Split sums are added up from the workspace; in place, their order would be left to chance.
inline constexpr std::uint32_t kSumsInWorkspace = 2;

struct Algorithm {
  std::uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  std::size_t workspace;
  Status status;
  float waves;
  int reserved[4];
};

struct Functions {
  std::size_t (*version)();
  Status (*create)(Opaque* handle);
  Status (*destroy)(Opaque handle);
  Status (*describe)(Opaque* description, Compute compute, DataType scale);
  Status (*destroy_description)(Opaque description);
  Status (*set_description)(Opaque description, DescriptionAttribute which, const void* value, std::size_t);
  Status (*lay_out)(Opaque* layout, DataType type, std::uint64_t rows, std::uint64_t cols,
                    std::int64_t stride);
  Status (*destroy_layout)(Opaque layout);
  Status (*prefer)(Opaque* preference);
  Status (*destroy_preference)(Opaque preference);
  Status (*set_preference)(Opaque preference, PreferenceAttribute which, const void* value, std::size_t);
  Status (*choose)(Opaque handle, Opaque description, Opaque a, Opaque b, Opaque c, Opaque d,
                   Opaque preference, int wanted, Heuristic results[], int* found);
  Status (*multiply)(Opaque handle, Opaque description, const void* alpha, const void* a, Opaque a_layout,
                     const void* b, Opaque b_layout, const void* beta, const void* c, Opaque c_layout,
                     void* d, Opaque d_layout, const Algorithm* algorithm, void* workspace,
                     std::size_t workspace_bytes, CUstream_st* stream);
};

// Opened once in the process; null where there is no such library.
const Functions* find();
// "cuBLASLt 13.1.1", or nothing.
std::string name();

}  // namespace lt

// The products of one device. Plans are made once for each shape, so that equal products take equal ways.
class CublasLt {
 public:
  // The workspace is allocated with the first product, or before.
  CublasLt(const lt::Functions& functions, Precision precision, Allocate allocate);

  // out = A B (+ out), or false if the library cannot compute it here. The shadow is left as it was.
  bool product(const Factor& a, const Factor& b, const Tensor& out, bool accumulate, CUstream_st* stream);
  // False if there is no library after all.
  bool start();

 private:
  using Owner = std::unique_ptr<void, lt::Status (*)(lt::Opaque)>;
  struct Plan {
    Owner description, a, b, out;
    lt::Heuristic heuristic;
    bool exists;
  };
  using Key = std::array<std::int64_t, 12>;

  Plan make_plan(const Factor& a, const Factor& b, const Tensor& out, const Key& key) const;
  Owner own(lt::Opaque opaque, lt::Status (*destroy)(lt::Opaque)) const { return {opaque, destroy}; }

  const lt::Functions& functions_;
  const Precision precision_;
  const Allocate allocate_;
  Memory workspace_;
  Owner handle_;
  bool started_ = false;
  std::map<Key, Plan> plans_;
};

}  // namespace fastsae::cuda
