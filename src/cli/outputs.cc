#include "cli/outputs.h"

#include <filesystem>

#include "tensor/fail.h"

namespace regard::cli {

void check_output(const Checkpoint& checkpoint, const char* option, const std::string& output) {
  for (const std::filesystem::path& file : checkpoint.files()) {
    // The same device and inode; not so if one of them does not exist.
    std::error_code error;
    require(!std::filesystem::equivalent(file, output, error), "{} is \"{}\", a file that is read: {}", option, output,
            file.string());
  }
}

}  // namespace regard::cli
