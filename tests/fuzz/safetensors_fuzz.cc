// A safetensors file of any bytes is read or refused.
#include "checkpoint/parsed_file.h"
#include "regard/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    for (const auto& tensor : regard::parse_safetensors(std::as_bytes(std::span(data, size)), "fuzz").tensors)
      (void)tensor.matrix();
  } catch (const regard::Error&) {
    // Refused, as it should be.
  }
  return 0;
}
