# Read by CMake after project() (CMAKE_PROJECT_INCLUDE) when setup.py builds against the ROS wheels of PyPI; colcon never
# sees it. Two things that CMake refuses at the end of the configuration are put right once all targets are there:
#
# * the targets that the wheels export name include directories of the machine that built them;
# * with the virtual environment inside the source tree (.venv), the targets made here would export directories of the
#   source tree.

function(_mend_include_directories)
  get_property(imported DIRECTORY PROPERTY IMPORTED_TARGETS)
  get_property(made DIRECTORY PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS imported made)
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT directories)
      continue()
    endif()
    set(mended "")
    foreach(directory IN LISTS directories)
      # Relative paths and generator expressions are left to CMake.
      if(IS_ABSOLUTE "${directory}")
        if(NOT EXISTS "${directory}")
          continue()
        endif()
        cmake_path(IS_PREFIX CMAKE_SOURCE_DIR "${directory}" NORMALIZE inside)
        if(inside AND target IN_LIST made)
          set(directory "$<BUILD_INTERFACE:${directory}>")
        endif()
      endif()
      list(APPEND mended "${directory}")
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${mended}")
  endforeach()
endfunction()

cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL _mend_include_directories)
