// A config.json of any bytes describes a model or is refused; a description can be asked for its sizes.
#include "regard/error.h"
#include "regard/model_spec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto spec = regard::ModelSpec::from_config_json({reinterpret_cast<const char*>(data), size}, "config.json");
    (void)spec.equal_layers();
    (void)spec.weight_bytes();
    (void)spec.with_context_length(100);
  } catch (const regard::Error&) {
    // Refused, as it should be.
  }
  return 0;
}
