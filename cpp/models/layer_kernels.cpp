#include "models/layer_kernels.h"

#include <type_traits>

namespace fastsae {
namespace {

template <class S, class F>
Kernel infer(const Tensor& bias) {
  return as_kernel(Infer<S, F>{bias.as<S>()});
}

template <class S, class F, class P>
Kernel activate(const Tensor& bias, const Tensor& weight) {
  return as_kernel(Activate<S, F, P>{bias.as<S>(), weight.as<S>()});
}

template <class S, class F, class P>
Kernel hidden_delta(const Tensor& activation, const Tensor& weight, const Tensor& column,
                    const StepScalars* step, double beta) {
  return as_kernel(
      HiddenDelta<S, F, P>{activation.view<const S>(), weight.as<S>(), column.as<S>(), step, beta});
}

template <class S, class F>
Kernel kl_column(const Tensor& sums, const Tensor& rho_hat, const Tensor& next_rho_hat,
                 const StepScalars* step, double rho, double beta, double share) {
  return as_kernel(KlColumn<S, F>{sums.as<double>(), rho_hat.as<double>(), next_rho_hat.as<double>(), step,
                                  rho, beta, share});
}

template <class S, class F, class L>
Kernel output_delta(const Tensor& bias, const Tensor& weight, const Tensor& target, const StepScalars* step,
                    double factor) {
  return as_kernel(OutputDelta<S, F, L>{bias.as<S>(), weight.as<S>(), target.view<const S>(), step, factor});
}

template <class S, class F, class L>
Kernel emphasised_delta(const Tensor& bias, const Tensor& weight, const Tensor& target,
                        const Tensor& emphasis, const StepScalars* step, double factor) {
  const OutputDelta<S, F, L> plain{bias.as<S>(), weight.as<S>(), target.view<const S>(), step, factor};
  return as_kernel(EmphasisedDelta<S, F, L>{plain, emphasis.view<const S>()});
}

template <class S, class F, class L>
Kernel row_loss(const Tensor& bias, const Tensor& target) {
  return as_kernel(RowLoss<S, F, L>{bias.as<S>(), target.view<const S>()});
}

}  // namespace

LayerKernels choose_layer_kernels(DType dtype, const std::string& activation, const std::string& penalty) {
  LayerKernels chosen{};
  with_scalar(dtype, [&](auto s) {
    using S = decltype(s);
    with_named<Activations>("activation", activation, [&](auto f) {
      using F = decltype(f);
      chosen.infer = infer<S, F>;
      if constexpr (F::bounded) chosen.kl_column = kl_column<S, F>;
      const std::string elementwise = penalty == KlPenalty::name ? NoPenalty::name : penalty;
      with_named<ElementPenalties>("penalty", elementwise, [&](auto p) {
        using P = decltype(p);
        chosen.activate = activate<S, F, P>;
        chosen.delta = hidden_delta<S, F, P>;
      });
    });
  });
  FS_REQUIRE(penalty != KlPenalty::name || chosen.kl_column != nullptr,
             "penalty='kl' needs a bounded activation, got '", activation, "'");
  return chosen;
}

OutputKernels choose_output_kernels(DType dtype, const std::string& activation, const std::string& loss) {
  OutputKernels chosen{};
  with_scalar(dtype, [&](auto s) {
    using S = decltype(s);
    with_named<Activations>("activation", activation, [&](auto f) {
      with_named<Losses>("loss", loss, [&](auto l) {
        using F = decltype(f);
        using L = decltype(l);
        if constexpr (std::is_same_v<L, SquaredError> || std::is_same_v<F, Sigmoid>) {
          chosen = {output_delta<S, F, L>, emphasised_delta<S, F, L>, row_loss<S, F, L>};
        }
      });
    });
  });
  FS_REQUIRE(chosen.delta != nullptr, "loss='", loss, "' needs a sigmoid output layer, got activation '",
             activation, "'");
  return chosen;
}

}  // namespace fastsae
