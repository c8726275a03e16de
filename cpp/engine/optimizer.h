// The optimiser of an engine: its moments, its step scalars (in double), and the update kernel.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "models/model.h"

namespace fastsae {

// By what the learning rate of a step is multiplied; python/fastsae/schedules.py has the meanings.
struct Schedule {
  std::string name = "constant";  // or cosine, linear, step
  std::int64_t warm_up = 0;
  std::int64_t total_steps = 0;  // of the cosine and the line; 0 as long as it is not known
  double final_share = 0;        // of both
  std::int64_t step_size = 1;
  double gamma = 1;
  std::int64_t decay_steps = 0;  // of the line; 0: all after the warm-up
  double first_share = -1;       // that the warm-up begins with; below 0: 1 / warm_up

  // The share of step number `step`, which counts from 1.
  double share(std::int64_t step) const;
  bool has_end() const { return name == "cosine" || name == "linear"; }
  // What an average by the square of the largest rate so far gives to that step. No schedule passes its warm-up's end.
  double average_share(std::int64_t step) const;
};

// In what moments are kept of the parameters that the model updates itself.
enum class StatePrecision { full, bf16, eight_bits };

struct OptimizerSpec {
  std::string name;  // sgd, momentum, nesterov, adam, adamw, sign_sgd
  double learning_rate, momentum, beta1, beta2, epsilon;
  double max_gradient_norm = std::numeric_limits<double>::infinity();
  Schedule schedule = {};
  StatePrecision state_precision = StatePrecision::full;
};

class Optimizer {
 public:
  Optimizer(const OptimizerSpec& spec, Backend& backend) : spec_(spec), backend_(backend) {}

  // Moments named first_moment.NAME and second_moment.NAME, for as many as the optimiser has; of 8 bits also
  // first_scale.NAME and second_scale.NAME.
  void declare(Arena& state, const Arena& parameters, const std::vector<Parameter>& list);
  // What the update of step number `step`, which counts from 1, takes from the host.
  void set_scalars(StepScalars& scalars, std::int64_t step) const;
  void apply(const std::vector<Parameter>& parameters, const StepMemory& memory);
  // The update of the parameter at this place of the list.
  Kernel update(const Parameter& parameter, std::size_t index, const StepMemory& memory) const;

  // Of the parameters that the model updates itself.
  std::vector<MatrixUpdate> updates_by_model(const std::vector<Parameter>& parameters) const;
  // Whether its parameters are not yet what it has learned: their average is.
  bool averages() const;
  // Puts the averages in the place of the parameters.
  void average(const std::vector<Parameter>& parameters);
  // What this parameter's steps have led to, where they are averaged.
  const Tensor& iterate(std::size_t index) const { return *moments_[index].first; }

  double learning_rate() const { return spec_.learning_rate; }
  void set_learning_rate(double rate) { spec_.learning_rate = rate; }
  const Schedule& schedule() const { return spec_.schedule; }
  void set_total_steps(std::int64_t steps) { spec_.schedule.total_steps = steps; }

 private:
  struct Moments {
    Tensor *first = nullptr, *second = nullptr;
    Tensor *first_scale = nullptr, *second_scale = nullptr;  // of 8 bits
  };
  OptimizerConstants constants(const Parameter& parameter) const;
  // The type of the moments of a parameter that the model updates itself.
  DType kept_as(DType full) const;

  OptimizerSpec spec_;
  Backend& backend_;
  std::vector<Moments> moments_;
  std::vector<Mapped> updates_;  // of a step; kept so that no step allocates
};

}  // namespace fastsae
