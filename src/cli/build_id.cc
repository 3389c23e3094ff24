#include "cli/build_id.h"

#include <fmt/format.h>
#include <link.h>

#include <cstddef>
#include <cstring>
#include <span>

namespace regard::cli {
namespace {

constexpr size_t padded(size_t size) { return (size + 3) / 4 * 4; }

// The GNU build id among ELF notes: a header, the owner's name and the content each, padded to words of 4 bytes.
std::string find_build_id(std::span<const std::byte> notes) {
  while (notes.size() >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) header{};
    std::memcpy(&header, notes.data(), sizeof(header));
    notes = notes.subspan(sizeof(header));
    const size_t content = padded(header.n_namesz);
    if (notes.size() < content + padded(header.n_descsz)) break;
    const bool found = header.n_type == NT_GNU_BUILD_ID && header.n_namesz == sizeof("GNU") &&
                       std::memcmp(notes.data(), "GNU", sizeof("GNU")) == 0;
    if (found) {
      std::string digits;
      for (const std::byte byte : notes.subspan(content, header.n_descsz))
        digits += fmt::format("{:02x}", static_cast<unsigned>(byte));
      return digits;
    }
    notes = notes.subspan(content + padded(header.n_descsz));
  }
  return "";
}

// The program itself is the first object that is visited, and the only one.
int visit(dl_phdr_info* object, size_t /*size*/, void* id) {
  for (const auto& segment : std::span(object->dlpi_phdr, object->dlpi_phnum)) {
    if (segment.p_type != PT_NOTE) continue;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): the loader gives addresses as numbers.
    const auto* first = reinterpret_cast<const std::byte*>(object->dlpi_addr + segment.p_vaddr);
    auto& found = *static_cast<std::string*>(id);
    if (found.empty()) found = find_build_id({first, segment.p_memsz});
  }
  return 1;
}

}  // namespace

std::string build_id() {
  std::string id;
  dl_iterate_phdr(visit, &id);
  return id;
}

}  // namespace regard::cli
