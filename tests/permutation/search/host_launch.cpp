// Entry points for Python: a launch on the host of each kernel of cuda/search.cu. Arguments come as 64-bit words.

#include "host_cuda.h"

#include "search.cu"

template <class T>
static T* pointer(const uint64_t* words, int k) {
    return (T*)(uintptr_t)words[k];
}

extern "C" int host_kernel(const char* name, const int* grid, int threads, int shared_bytes, const uint64_t* w) {
    const Task* tasks = w ? pointer<Task>(w, 0) : nullptr;
    if (!strcmp(name, "advance_clock"))
        return host_launch(grid, threads, shared_bytes, [=] { advance_clock(pointer<i64>(w, 0), (i64)w[1]); });
    if (!strcmp(name, "pick_columns"))
        return host_launch(grid, threads, shared_bytes, [=] {
            pick_columns(
                tasks, pointer<int>(w, 1), pointer<u64>(w, 2), pointer<i64>(w, 3), (i64)w[4], pointer<int>(w, 5),
                pointer<int>(w, 6), pointer<int>(w, 7));
        });
    if (!strcmp(name, "excess_product"))
        return host_launch(grid, threads, shared_bytes, [=] {
            excess_product(
                tasks, pointer<int>(w, 1), pointer<u64>(w, 2), pointer<i64>(w, 3), (i64)w[4], pointer<i64>(w, 5),
                pointer<u64>(w, 6), pointer<int>(w, 7), pointer<u16>(w, 8), pointer<u16>(w, 9), (i64)w[10],
                pointer<u64>(w, 11));
        });
    if (!strcmp(name, "assign"))
        return host_launch(grid, threads, shared_bytes, [=] {
            assign(
                tasks, (int)w[1], pointer<int>(w, 2), pointer<int>(w, 3), pointer<u64>(w, 4), pointer<int>(w, 5),
                pointer<int>(w, 6), pointer<int>(w, 7));
        });
    if (!strcmp(name, "refresh_stripes"))
        return host_launch(grid, threads, shared_bytes, [=] {
            refresh_stripes(
                tasks, pointer<int>(w, 1), pointer<int>(w, 2), pointer<i64>(w, 3), (i64)w[4], pointer<int>(w, 5),
                pointer<u16>(w, 6), pointer<u16>(w, 7), pointer<int>(w, 8), pointer<u64>(w, 9));
        });
    return 3;
}
