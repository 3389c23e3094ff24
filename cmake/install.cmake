# Filled with the package files: find_package(regard) and pkg-config.
install(TARGETS regard EXPORT regardTargets)
install(DIRECTORY include/regard DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
