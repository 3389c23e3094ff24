# The package files: find_package(regard) and pkg-config.
include(CMakePackageConfigHelpers)

set(REGARD_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/regard)
install(
  TARGETS regard
  EXPORT regardTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(REGARD_BUILD_CLI)
  install(TARGETS regard_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
if(TARGET regard_mpi)
  install(
    TARGETS regard_mpi
    EXPORT regardMpiTargets
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(
    EXPORT regardMpiTargets
    NAMESPACE regard::
    DESTINATION ${REGARD_PACKAGE_DIR})
endif()
install(FILES LICENSE README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY include/regard DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(
  EXPORT regardTargets
  NAMESPACE regard::
  DESTINATION ${REGARD_PACKAGE_DIR})

configure_package_config_file(cmake/regardConfig.cmake.in ${PROJECT_BINARY_DIR}/regardConfig.cmake
                              INSTALL_DESTINATION ${REGARD_PACKAGE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/regardConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/regardConfig.cmake ${PROJECT_BINARY_DIR}/regardConfigVersion.cmake
        DESTINATION ${REGARD_PACKAGE_DIR})

# So that the file is right wherever the tree is installed or moved.
file(RELATIVE_PATH REGARD_PC_TO_PREFIX "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
# What a static libregard is linked with, its users link too, and `pkg-config --libs` says so without --static.
set(REGARD_PC_LINKED "libhwy libpcre2-8 libutf8proc fmt")
if(BUILD_SHARED_LIBS)
  set(REGARD_PC_DEPENDENCIES "Requires.private: ${REGARD_PC_LINKED}\nLibs: -L\${libdir} -lregard\nLibs.private: -pthread")
else()
  set(REGARD_PC_DEPENDENCIES "Requires: ${REGARD_PC_LINKED}\nLibs: -L\${libdir} -lregard -pthread")
endif()
configure_file(cmake/regard.pc.in ${PROJECT_BINARY_DIR}/regard.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/regard.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
