// A file of requests or of results of any bytes is read or refused.
#include "cli/batch_requests.h"
#include "cli/batch_results.h"
#include "fuzz/memory_file.h"
#include "regard/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const regard::MemoryFile file(std::as_bytes(std::span(data, size)));
  regard::cli::BatchRequest known{.id = "a", .prompt = "the", .settings = {}, .error = {}};
  try {
    (void)regard::cli::read_batch_results(file.path(), {&known, 1});
  } catch (const regard::Error&) {
    // Refused, as it should be.
  }
  try {
    (void)regard::cli::read_batch_requests(file.path());
  } catch (const regard::Error&) {
    // Refused, as it should be.
  }
  return 0;
}
