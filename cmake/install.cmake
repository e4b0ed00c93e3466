# What `cmake --install` leaves for others: headers, the library, and the two ways to find it,
# find_package(harvest) and pkg-config. The program's own rule stands in src/cli.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/harvest)

if(TARGET harvest_cli)
  file(RELATIVE_PATH from_bin_to_lib ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
  set_target_properties(harvest_cli PROPERTIES INSTALL_RPATH "\$ORIGIN/${from_bin_to_lib}")
endif()

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/harvest DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS harvest EXPORT harvest-targets)
install(EXPORT harvest-targets NAMESPACE harvest:: DESTINATION ${package_dir})

get_target_property(library_type harvest TYPE)
if(library_type STREQUAL "STATIC_LIBRARY")
  set(HARVEST_IS_STATIC TRUE)
else()
  set(HARVEST_IS_STATIC FALSE)
endif()
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/harvest-config.cmake.in
  ${PROJECT_BINARY_DIR}/harvest-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/harvest-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/harvest-config.cmake ${PROJECT_BINARY_DIR}/harvest-config-version.cmake
  DESTINATION ${package_dir})

# A shared library knows what it needs itself. Of a static one the user must link that too, whether
# or not he says --static: there is no other library that a call without it could mean.
set(pc_requires "")
set(pc_libs "")
if(HARVEST_IS_STATIC)
  set(pc_requires "fmt spdlog zlib")
  set(pc_libs " -pthread")
  if(HARVEST_WITH_CUDA)
    string(APPEND pc_libs " -L${CUDAToolkit_LIBRARY_DIR} -lcudart -ldl")
  endif()
endif()
# Relative, so that `cmake --install --prefix` and moved packages work.
file(RELATIVE_PATH pc_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(${CMAKE_CURRENT_LIST_DIR}/harvest.pc.in ${PROJECT_BINARY_DIR}/harvest.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/harvest.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
