// Every kernel there is, once. Each device compiles this list; a struct that is not in it does not compile.
#pragma once

#include <string>

#include "core/error.h"
#include "core/type_list.h"
#include "kernels/code_inference.h"
#include "kernels/codes.h"
#include "kernels/collected_codes.h"
#include "kernels/contraction.h"
#include "kernels/elementwise.h"
#include "kernels/epilogues.h"
#include "kernels/images.h"
#include "kernels/noise.h"
#include "kernels/sampling.h"
#include "kernels/softmax.h"
#include "kernels/winners.h"

namespace fastsae {

// Apply<Template, S, List>: Template<S, T> for each T of the list.
template <template <class, class> class Template, class S, class List>
struct ApplyList;
template <template <class, class> class Template, class S, class... Ts>
struct ApplyList<Template, S, TypeList<Ts...>> {
  using type = TypeList<Template<S, Ts>...>;
};
template <template <class, class> class Template, class S, class List>
using Apply = typename ApplyList<Template, S, List>::type;

// Cross<Template, S, List>: Template<S, F, T> for each activation F and each T of the list.
template <template <class, class, class> class Template, class S, class Fs, class Ts>
struct CrossLists;
template <template <class, class, class> class Template, class S, class... Fs, class Ts>
struct CrossLists<Template, S, TypeList<Fs...>, Ts> {
  template <class F>
  struct Bind {
    template <class S2, class T>
    using With = Template<S2, F, T>;
  };
  using type = Concat<Apply<Bind<Fs>::template With, S, Ts>...>;
};
template <template <class, class, class> class Template, class S, class Ts>
using Cross = typename CrossLists<Template, S, Activations, Ts>::type;

// What may stand in one place of a step.
template <class S>
using ActivateKernels = Cross<Activate, S, ElementPenalties>;
template <class S>
using HiddenDeltaKernels = Cross<HiddenDelta, S, ElementPenalties>;
template <class S>
using OutputDeltaKernels =
    Concat<Cross<OutputDelta, S, TypeList<SquaredError>>, TypeList<OutputDelta<S, Sigmoid, CrossEntropy>>>;
template <class S>
using EmphasisedDeltaKernels = Concat<Cross<EmphasisedDelta, S, TypeList<SquaredError>>,
                                      TypeList<EmphasisedDelta<S, Sigmoid, CrossEntropy>>>;
template <class S>
using KlColumnKernels = TypeList<KlColumn<S, Sigmoid>, KlColumn<S, Tanh>>;
template <class S>
using UpdateKernels = Apply<Update, S, OptimizerSteps>;

template <class S>
using RowLossKernels =
    Concat<Cross<RowLoss, S, TypeList<SquaredError>>, TypeList<RowLoss<S, Sigmoid, CrossEntropy>>>;
template <class S>
using WeightGradientKernels = TypeList<DecayedGradient<S>, SparseGradient<S>>;
template <class S>
using ImageKernels = TypeList<MaxPool<S>, TakeMaxima<S>, PutMaxima<S>, SumWindows<S>, SpreadWindows<S>>;
template <class S>
using NoiseKernels = TypeList<Replace<S>, AddNormals<S, false>, AddNormals<S, true>>;
template <class S>
using CodeKernels = TypeList<SampleCode<S>, CodeCost<S>, CodeDelta<S>, ClampMoments<S>>;
template <class S>
using ContractionKernels =
    Concat<Apply<Slopes, S, Activations>,
           TypeList<SquaredRows<S>, Contract<S>, ContractedGradient<S>, Tangent<S>, TangentDelta<S>>>;
template <class S>
using SoftmaxKernels = TypeList<SoftmaxRows<S>, SoftmaxDelta<S>, SoftmaxValue<S>, SoftmaxLoss<S>>;
template <class S>
using WinnerKernels = TypeList<MapWinner<S>, LifetimeWinner<S>, KeepWinners<S>>;

template <class S>
using SparseCodeKernels = TypeList<Centered<S>, CopySumming<S>, SquaredDeviation<S>, Coefficient<S>,
                                   ColumnSum<S>, SquareSum<S>, DecoderBiasGradient<S>, InferCode<S>,
                                   InferGate<S>, Unscaled<S>, AddExtra<S>, SquaredDistance<S>>;
template <class S>
using DenseCodeKernels =
    TypeList<ForwardCode<S>, BackwardCode<S>, ActiveCount<S>, CountSlope<S>, ForwardGate<S>, BackwardGate<S>,
             NegativeOf<S>, ExpOf<S>, CodeError<S>, ThresholdGradient<S>, ClampThreshold<S>>;
template <class S>
using CollectedCodeKernels =
    TypeList<ForwardElement<S>, BackwardElement<S>, ForwardGateElement<S>, BackwardGateElement<S>>;
using CodeScalarKernels =
    TypeList<CodeFactors, AuxiliaryFactor, CloseCode, KeepMonitor, KeepSince, PenaltyPull, CountTile>;

// clang-format off: a group on a line
template <class S>
using KernelsOf = Concat<
    Apply<Infer, S, Activations>,
    ActivateKernels<S>,
    HiddenDeltaKernels<S>,
    OutputDeltaKernels<S>,
    EmphasisedDeltaKernels<S>,
    RowLossKernels<S>,
    KlColumnKernels<S>,
    WeightGradientKernels<S>,
    TypeList<WeightCost<S>, BiasGradient<S>, SpreadWeight<S>, Transposed<S>, WeightedSum<S>>,
    ImageKernels<S>,
    NoiseKernels<S>,
    CodeKernels<S>,
    ContractionKernels<S>,
    SoftmaxKernels<S>,
    WinnerKernels<S>,
    SparseCodeKernels<S>,
    DenseCodeKernels<S>,
    CollectedCodeKernels<S>,
    UpdateKernels<S>,
    TypeList<Average<S>>>;
// clang-format on

using KernelList =
    Concat<KernelsOf<float>, KernelsOf<double>, CodeScalarKernels, TypeList<CloseStep, KeepRhoHat, SumRow>>;

template <class K>
Kernel as_kernel(const K& k) {
  static_assert(sizeof(K) <= Kernel::capacity && std::is_trivially_copyable_v<K>);
  Kernel kernel;
  std::memcpy(kernel.bytes, &k, sizeof(K));
  kernel.index = static_cast<std::uint16_t>(IndexOf<K, KernelList>::value);
  kernel.pass = K::pass;
  kernel.sums = K::sums;
  kernel.dtype = dtype_of<typename K::Scalar>;
  return kernel;
}

// Where a name becomes a type: calls f with a value of the named struct of the list.
template <class List, class F>
void with_named(const char* what, const std::string& name, F&& f) {
  bool found = false;
  for_each_type(List{}, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (!found && name == T::name) {
      found = true;
      f(T{});
    }
  });
  FS_REQUIRE(found, what, ": unknown name '", name, "'");
}

// Calls f with a float or a double.
template <class F>
auto with_scalar(DType dtype, F&& f) {
  return dtype == DType::f32 ? f(float{}) : f(double{});
}

}  // namespace fastsae
