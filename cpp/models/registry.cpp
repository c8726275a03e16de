// Which models there are, and the names of the closed lists they choose from.
#include "kernels/list.h"
#include "models/model.h"

namespace fastsae {
namespace {

template <class List>
std::vector<std::string> names_of() {
  std::vector<std::string> names;
  for_each_type(List{}, [&](auto* type) { names.emplace_back(std::remove_pointer_t<decltype(type)>::name); });
  return names;
}

}  // namespace

std::unique_ptr<Model> make_model(const ModelSpec& spec, Backend& backend) {
  return spec.sparse_code ? make_sparse_code(spec, backend) : make_layered(spec, backend);
}

std::map<std::string, std::vector<std::string>> kernel_names() {
  return {{"activations", names_of<Activations>()},
          {"losses", names_of<Losses>()},
          {"penalties", names_of<Concat<ElementPenalties, TypeList<KlPenalty>>>()},
          {"optimizers", names_of<OptimizerSteps>()}};
}

}  // namespace fastsae
