// The channel-order search on CUDA: the move of tfmot_asp/permutation/search/moves.py, round for round and bit for bit.
//
// A task is one block of stripes of one chain of one matrix. A step is four launches over all tasks, each of which makes
// its own next round: pick_columns, excess_product, assign, refresh_stripes. All sums are of integers, every minimum is
// taken at the lowest index, and random numbers are functions of (key, counter): the result depends neither on launch
// geometry, scheduling or device, nor on what else is searched at the same time. The number of the step is *clock +
// ahead: launches that differ in nothing else can be captured once, as a graph of many steps, and repeated (advance_clock).
//
// Compiled at run time with STRIPE (n) and KEEP (n - m) defined, so that a stripe's values live in registers.
// tests/permutation/search/host_cuda.h lets the same source compile as host C++, which is how it is tested without a GPU.

#ifndef STRIPE
#define STRIPE 4
#endif
#ifndef KEEP
#define KEEP 2
#endif

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) int name[]
#endif

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define TILE 64        // columns per side of a product tile
#define CHUNK 64       // rows staged at a time
#define STRIDE 72      // 16-bit values from one staged column to the next: 16-byte reads of 8 neighbours meet no bank twice
#define THREADS 256
#define MOST_THREADS 512  // of assign
#define LARGEST 256        // stripes of a task
#define COST_BITS 26
#define FAR 0x7fffffff

// Two 16-bit values per register. Codes are below 2**12, and as bit patterns of half floats non-negative numbers order
// as the integers do, subnormals included: one instruction for two maxima, on every chip since sm_80.
__device__ __forceinline__ u32 max_pair(u32 a, u32 b) {
#if defined(__CUDA_ARCH__)
    u32 result;
#if __CUDA_ARCH__ >= 900
    asm("max.u16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
#else
    asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
#endif
    return result;
#else
    u32 low = (a & 0xffffu) > (b & 0xffffu) ? (a & 0xffffu) : (b & 0xffffu);
    u32 high = (a >> 16) > (b >> 16) ? (a >> 16) : (b >> 16);
    return high << 16 | low;
#endif
}

__device__ __forceinline__ u64 draw(u64 key, u64 counter) {
    u64 z = key + (counter + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// What a task is and where its data are, counted in elements from the start of each array. Must match cuda.py's FIELDS.
struct Task {
    i64 stripes;       // in dealt: its stripes of an epoch,
    i64 stripes_step;  // and from there to those of the next
    i64 key;           // in keys: its random key of an epoch,
    i64 key_step;      // and from there to that of the next
    i64 span;          // epochs that dealt and keys hold at a time
    i64 rounds;        // of an epoch
    i64 total;         // rounds in all
    i64 hottest;       // temperature of the first round
    i64 size;          // stripes
    i64 slot;          // in position, index and changed, which have a slot per stripe of a task
    i64 square;        // in excess and cost, which have size * size
    i64 codes;         // of its matrix: (columns, rows)
    i64 thresholds;    // of its chain: (columns, rows)
    i64 state;         // in order and threshold_sum: its chain's columns
    i64 rows;          // of the codes, a multiple of 16
    i64 columns;
};

__device__ __forceinline__ const int* stripes_of(const Task& task, const int* dealt, i64 step) {
    return dealt + task.stripes + step / task.rounds % task.span * task.stripes_step;
}

// The key of a task's round.
__device__ __forceinline__ u64 key_of(const Task& task, const u64* keys, i64 step) {
    return draw(keys[task.key + step / task.rounds % task.span * task.key_step], (u64)(step % task.rounds));
}

// The temperature of a task's round: it falls linearly over the search, and is zero in its last twentieth.
__device__ __forceinline__ i64 temperature_of(const Task& task, i64 step) {
    i64 cold = task.total / 20 > 1 ? task.total / 20 : 1;
    i64 hot = task.total - cold - step > 0 ? task.total - cold - step : 0;
    return task.hottest * hot / (task.total - cold > 1 ? task.total - cold : 1);
}

// Moves the clock on. Launch: (1), 1.
extern "C" __global__ void advance_clock(i64* clock, i64 steps) { *clock += steps; }

// One position of every stripe, and the column there. Launch: (tasks), THREADS.
extern "C" __global__ void pick_columns(
    const Task* tasks, const int* dealt, const u64* keys, const i64* clock, i64 ahead, const int* order, int* position,
    int* index) {
    const Task& task = tasks[blockIdx.x];
    i64 step = *clock + ahead;
    const int* stripes = stripes_of(task, dealt, step);
    u64 slots = draw(key_of(task, keys, step), 1);
    for (int i = threadIdx.x; i < task.size; i += blockDim.x) {
        i64 begin = (i64)stripes[i] * STRIPE;
        i64 width = task.columns - begin < STRIPE ? task.columns - begin : STRIPE;
        int place = (int)(begin + (i64)((draw(slots, i) >> 33) % (u64)width));
        position[task.slot + i] = place;
        index[task.slot + i] = order[task.state + place];
    }
}

// Adds sum over rows of max(x_j - b_i, 0), with the noise of the round, to excess[task][i][j], for x_j = codes[index[j]]
// and b_i = thresholds[index[i]]. Launch: (pieces of work), THREADS; a piece is four ints, task, tile of i, tile of j,
// split of the rows; each thread owns 4 x 4 sums. The first split adds what is added once. Sums wrap around: what comes
// out is a signed number in 64 bits.
extern "C" __global__ void excess_product(
    const Task* tasks, const int* work, const u64* keys, const i64* clock, i64 ahead, const i64* table,
    const u64* threshold_sum, const int* index, const u16* codes, const u16* thresholds, i64 rows_per_split,
    u64* excess) {
    __shared__ __align__(16) u16 x_stage[TILE * STRIDE];
    __shared__ __align__(16) u16 b_stage[TILE * STRIDE];
    const int* piece = work + 4 * (i64)blockIdx.x;
    const Task& task = tasks[piece[0]];
    int size = (int)task.size;
    int i0 = piece[1] * TILE;
    int j0 = piece[2] * TILE;
    const u16* x_matrix = codes + task.codes;
    const u16* b_matrix = thresholds + task.thresholds;
    const int* picked = index + task.slot;
    i64 rows = task.rows;
    i64 start = piece[3] * rows_per_split;
    i64 end = start + rows_per_split < rows ? start + rows_per_split : rows;
    int ti = threadIdx.x / 16;
    int tj = threadIdx.x % 16;
    u32 wide[4][4];
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
        for (int c = 0; c < 4; c++) wide[a][c] = 0;
    for (i64 row = start; row < end; row += CHUNK) {
        for (int v = threadIdx.x; v < TILE * CHUNK / 8; v += THREADS) {
            int column = v / (CHUNK / 8);
            int offset = v % (CHUNK / 8) * 8;
            uint4 x = make_uint4(0, 0, 0, 0);
            uint4 b = make_uint4(0, 0, 0, 0);
            if (row + offset < end) {  // rows come in multiples of 16
                if (j0 + column < size) x = *(const uint4*)(x_matrix + (i64)picked[j0 + column] * rows + row + offset);
                if (i0 + column < size) b = *(const uint4*)(b_matrix + (i64)picked[i0 + column] * rows + row + offset);
            }
            *(uint4*)(x_stage + column * STRIDE + offset) = x;
            *(uint4*)(b_stage + column * STRIDE + offset) = b;
        }
        __syncthreads();
#pragma unroll
        for (int half = 0; half < CHUNK; half += 32) {  // 16 pairs of rows: 16 * 4095 < 2**16
            u32 narrow[4][4];
#pragma unroll
            for (int a = 0; a < 4; a++)
#pragma unroll
                for (int c = 0; c < 4; c++) narrow[a][c] = 0;
#pragma unroll
            for (int offset = half; offset < half + 32; offset += 8) {
                uint4 x[4], b[4];
#pragma unroll
                for (int a = 0; a < 4; a++) {
                    b[a] = *(const uint4*)(b_stage + (ti + 16 * a) * STRIDE + offset);
                    x[a] = *(const uint4*)(x_stage + (tj + 16 * a) * STRIDE + offset);
                }
#pragma unroll
                for (int a = 0; a < 4; a++)
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        narrow[a][c] += max_pair(b[a].x, x[c].x) + max_pair(b[a].y, x[c].y);
                        narrow[a][c] += max_pair(b[a].z, x[c].z) + max_pair(b[a].w, x[c].w);
                    }
            }
#pragma unroll
            for (int a = 0; a < 4; a++)
#pragma unroll
                for (int c = 0; c < 4; c++) wide[a][c] += (narrow[a][c] & 0xffffu) + (narrow[a][c] >> 16);
        }
        __syncthreads();
    }
    i64 temperature = 0;
    u64 noise = 0;
    if (start == 0) {
        i64 step = *clock + ahead;
        temperature = temperature_of(task, step);
        if (temperature > 0) noise = draw(key_of(task, keys, step), 2);
    }
    for (int a = 0; a < 4; a++) {
        int i = i0 + ti + 16 * a;
        if (i >= size) continue;
        u64 base = start == 0 ? threshold_sum[task.state + picked[i]] : 0;
        for (int c = 0; c < 4; c++) {
            int j = j0 + tj + 16 * c;
            if (j >= size) continue;
            i64 e = (i64)i * size + j;
            u64 sum = wide[a][c] - base;
            if (temperature > 0) sum += (u64)((table[draw(noise, (u64)e) >> 52] * temperature) >> 16);
            atomicAdd(excess + task.square + e, sum);
        }
    }
}

// Row i of the costs: the first rows that fit are kept in shared memory.
struct Costs {
    const int* near_rows;
    const int* far_rows;
    int near_count, size;
    __device__ __forceinline__ int at(int i, int j) const {
        return i < near_count ? near_rows[i * size + j] : far_rows[i * size + j];
    }
};

// The assignment is solved by one warp. Column lane + 32 k is lane's k-th, of N at most: what is known of it, its potential
// and the row that owns it (-1: none), stays in registers. A column and its owner travel in one word, so that the minimum
// of the words is the lowest column, and tells its owner.
#define EVERYONE 0xffffffffu
#define WORD(column, owner) ((column) << 16 | ((owner) + 1))
#define COLUMN(word) ((word) >> 16)
#define OWNER(word) (((word) & 0xffff) - 1)

// Row i of the costs less the potentials; FAR beyond the last column.
template <int N>
__device__ __forceinline__ void reduced_row(const Costs& cost, int i, const int (&potential)[N], int (&value)[N]) {
    int lane = threadIdx.x;
    if (i < cost.near_count) {
        const int* row = cost.near_rows + i * cost.size;
#pragma unroll
        for (int k = 0; k < N; k++) value[k] = lane + 32 * k < cost.size ? row[lane + 32 * k] - potential[k] : FAR;
    } else {
        const int* row = cost.far_rows + i * cost.size;
#pragma unroll
        for (int k = 0; k < N; k++) value[k] = lane + 32 * k < cost.size ? row[lane + 32 * k] - potential[k] : FAR;
    }
}

template <int N>
__device__ __forceinline__ int least(const int (&value)[N]) {
    int smallest = FAR;
#pragma unroll
    for (int k = 0; k < N; k++) smallest = value[k] < smallest ? value[k] : smallest;
    return __reduce_min_sync(EVERYONE, smallest);
}

// The word of the lowest column, but for one, with that value; FAR if there is none.
template <int N>
__device__ __forceinline__ int lowest_with(const int (&value)[N], int wanted, int but, const int (&owner)[N]) {
    int lane = threadIdx.x;
    int word = FAR;
#pragma unroll
    for (int k = N - 1; k >= 0; k--)
        if (value[k] == wanted && lane + 32 * k != but) word = WORD(lane + 32 * k, owner[k]);
    return __reduce_min_sync(EVERYONE, word);
}

// assignment.py's _reduce_rows. Returns how many rows it left, at the front of free_rows.
template <int N>
__device__ int reduce_rows(
    const Costs& cost, int (&potential)[N], int (&owner)[N], int* free_rows, int waiting) {
    int lane = threadIdx.x;
    int left = 0;
    int k = 0;
    int evictions = 8 * cost.size;
    int evicted = -1;  // the row to be served at once
    while (evicted >= 0 || k < waiting) {
        int i = evicted >= 0 ? evicted : free_rows[k++];
        int value[N];
        reduced_row(cost, i, potential, value);
        int best = least(value);
        // Three minima and sums that do not wait for each other.
        int next = FAR;
        int equal = 0;
#pragma unroll
        for (int q = 0; q < N; q++) {
            equal += value[q] == best;
            next = value[q] != best && value[q] < next ? value[q] : next;
        }
        int word = lowest_with(value, best, -1, owner);
        next = __reduce_min_sync(EVERYONE, next);
        equal = (int)__reduce_add_sync(EVERYONE, (u32)equal);
        bool strict = equal == 1;
        if (!strict && OWNER(word) >= 0) word = lowest_with(value, best, COLUMN(word), owner);
        int column = COLUMN(word);
        int pushed_out = OWNER(word);
#pragma unroll
        for (int q = 0; q < N; q++)
            if (lane + 32 * q == column) {
                owner[q] = i;
                if (strict && next != FAR) potential[q] -= next - best;
            }
        evicted = -1;
        if (pushed_out >= 0) {
            evictions -= 1;
            if (strict && evictions > 0) {
                evicted = pushed_out;
            } else {
                if (lane == 0) free_rows[left] = pushed_out;  // before k, which is behind what is read
                left += 1;
            }
        }
    }
    __syncwarp();
    return left;
}

// assignment.py's _augment.
template <int N>
__device__ void augment(
    const Costs& cost, int (&potential)[N], int (&owner)[N], int* column_of_row, int* row_of_column, int* previous,
    int start) {
    int lane = threadIdx.x;
    int open_distance[N], distance[N], before[N];
    reduced_row(cost, start, potential, open_distance);
#pragma unroll
    for (int k = 0; k < N; k++) {
        distance[k] = FAR;
        before[k] = start;
    }
    int column, nearest;
    while (true) {
        nearest = least(open_distance);
        int word = lowest_with(open_distance, nearest, -1, owner);
        column = COLUMN(word);
        int row = OWNER(word);
        if (row < 0) break;
        int there = 0;
#pragma unroll
        for (int k = 0; k < N; k++)
            if (lane + 32 * k == column) {
                distance[k] = nearest;
                open_distance[k] = FAR;
                there = potential[k];
            }
        int offset = cost.at(row, column) - __shfl_sync(EVERYONE, there, column % 32) - nearest;
        int value[N];
        reduced_row(cost, row, potential, value);
#pragma unroll
        for (int k = 0; k < N; k++)
            if (lane + 32 * k < cost.size && distance[k] == FAR && value[k] - offset < open_distance[k]) {
                open_distance[k] = value[k] - offset;
                before[k] = row;
            }
    }
#pragma unroll
    for (int k = 0; k < N; k++)
        if (lane + 32 * k < cost.size) {
            if (distance[k] != FAR) potential[k] += distance[k] - nearest;
            previous[lane + 32 * k] = before[k];
        }
    __syncwarp();
    if (lane == 0) {
        while (true) {
            int i = previous[column];
            row_of_column[column] = i;
            int back = column_of_row[i];
            column_of_row[i] = column;
            if (i == start) break;
            column = back;
        }
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < N; k++)
        if (lane + 32 * k < cost.size) owner[k] = row_of_column[lane + 32 * k];
}

// The permutation of least cost. On entry previous holds the potentials to start from and free_rows all rows.
template <int N>
__device__ void solve(const Costs& cost, int* column_of_row, int* row_of_column, int* previous, int* free_rows) {
    int lane = threadIdx.x;
    int potential[N], owner[N];
#pragma unroll
    for (int k = 0; k < N; k++) {
        potential[k] = lane + 32 * k < cost.size ? previous[lane + 32 * k] : 0;
        owner[k] = -1;
    }
    int left = reduce_rows(cost, potential, owner, free_rows, cost.size);
    left = reduce_rows(cost, potential, owner, free_rows, left);
#pragma unroll
    for (int k = 0; k < N; k++)
        if (lane + 32 * k < cost.size) {
            row_of_column[lane + 32 * k] = owner[k];
            if (owner[k] >= 0) column_of_row[owner[k]] = lane + 32 * k;
        }
    __syncwarp();
    for (int k = 0; k < left; k++)
        augment(cost, potential, owner, column_of_row, row_of_column, previous, free_rows[k]);
}

// The least of a warp's signed 64-bit numbers, by two minima of 32 bits.
__device__ __forceinline__ i64 least_of_warp(i64 value) {
    int high = (int)(value >> 32);
    int top = __reduce_min_sync(EVERYONE, high);
    int low = high == top ? (int)((u32)value ^ 0x80000000u) : FAR;
    low = __reduce_min_sync(EVERYONE, low);
    return (i64)((u64)(u32)top << 32 | ((u32)low ^ 0x80000000u));
}

// Solves each task's assignment and writes its columns to their new positions. Launch: (tasks), up to MOST_THREADS, whole
// warps, with shared_ints ints of dynamic shared memory, 4 for each stripe of the largest task at least; no task has more
// than LARGEST stripes. Leaves excess zeroed for the next round.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) assign(
    const Task* tasks, int shared_ints, const int* position, const int* index, u64* excess, int* cost, int* order,
    int* changed) {
    DYNAMIC_SHARED(scratch);
    __shared__ i64 lowest[MOST_THREADS / 32];
    __shared__ i64 highest[MOST_THREADS / 32];
    const Task& task = tasks[blockIdx.x];
    int size = (int)task.size;
    int* previous = scratch;
    int* free_rows = scratch + size;
    int* column_of_row = scratch + 2 * size;
    int* row_of_column = scratch + 3 * size;
    int* near = scratch + 4 * size;
    int near_rows = (shared_ints - 4 * size) / size;
    int* far = cost + task.square;
    u64* sums = excess + task.square;
    const int* picked = index + task.slot;

    i64 low = 0x7fffffffffffffffll;
    i64 negated = low;  // of the highest
    for (int e = threadIdx.x; e < size * size; e += blockDim.x) {
        i64 value = (i64)sums[e];
        low = value < low ? value : low;
        negated = -value < negated ? -value : negated;
    }
    low = least_of_warp(low);
    negated = least_of_warp(negated);
    if (threadIdx.x % 32 == 0) {
        lowest[threadIdx.x / 32] = low;
        highest[threadIdx.x / 32] = -negated;
    }
    __syncthreads();
    i64 high = highest[0];
    low = lowest[0];
    for (int w = 1; w < (int)blockDim.x / 32; w++) {
        low = lowest[w] < low ? lowest[w] : low;
        high = highest[w] > high ? highest[w] : high;
    }
    int shift = 0;
    while ((high - low) >> shift >= 1ll << COST_BITS) shift += 1;
    Costs costs = {near, far, near_rows < size ? near_rows : size, size};
    int edge = costs.near_count * size;
    for (int e = threadIdx.x; e < size * size; e += blockDim.x) {
        int value = (int)((high - (i64)sums[e]) >> shift);
        sums[e] = 0;
        (e < edge ? near : far)[e] = value;
    }
    __syncthreads();
    for (int j = threadIdx.x; j < size; j += blockDim.x) {
        i64 sum = 0;
        for (int i = 0; i < size; i++) sum += costs.at(i, j);
        previous[j] = (int)(sum / size);
        column_of_row[j] = -1;
        free_rows[j] = j;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        if (size <= 32)
            solve<1>(costs, column_of_row, row_of_column, previous, free_rows);
        else if (size <= 64)
            solve<2>(costs, column_of_row, row_of_column, previous, free_rows);
        else if (size <= 128)
            solve<4>(costs, column_of_row, row_of_column, previous, free_rows);
        else
            solve<LARGEST / 32>(costs, column_of_row, row_of_column, previous, free_rows);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        order[task.state + position[task.slot + i]] = picked[column_of_row[i]];
        changed[task.slot + i] = column_of_row[i] != i;
    }
}

// Recomputes thresholds, and their sums over the rows, of the stripes marked in changed (of all, if it is null).
// Launch: (slots of all tasks), THREADS; task_of_slot says whose each is.
extern "C" __global__ void refresh_stripes(
    const Task* tasks, const int* task_of_slot, const int* dealt, const i64* clock, i64 ahead, const int* changed,
    const u16* codes, u16* thresholds, const int* order, u64* threshold_sum) {
    __shared__ u64 total[STRIPE];
    if (changed != 0 && !changed[blockIdx.x]) return;
    const Task& task = tasks[task_of_slot[blockIdx.x]];
    i64 step = *clock + ahead;
    i64 rows = task.rows;
    i64 state = task.state;
    i64 begin = (i64)stripes_of(task, dealt, step)[blockIdx.x - task.slot] * STRIPE;
    int width = task.columns - begin < STRIPE ? (int)(task.columns - begin) : STRIPE;
    const u16* own_codes = codes + task.codes;
    u16* own_thresholds = thresholds + task.thresholds;
    if (threadIdx.x < STRIPE) total[threadIdx.x] = 0;
    __syncthreads();
    i64 column[STRIPE];
    u32 sum[STRIPE];
#pragma unroll
    for (int k = 0; k < STRIPE; k++) {
        column[k] = order[state + begin + (k < width ? k : 0)];
        sum[k] = 0;
    }
    for (i64 r = 2 * (i64)threadIdx.x; r < rows; r += 2 * THREADS) {
        u32 x[STRIPE];
        u32 top[KEEP + 1];
#pragma unroll
        for (int q = 0; q <= KEEP; q++) top[q] = 0;
#pragma unroll
        for (int k = 0; k < STRIPE; k++) {
            x[k] = k < width ? *(const u32*)(own_codes + column[k] * rows + r) : 0;
            u32 value = x[k];
#pragma unroll
            for (int q = 0; q <= KEEP; q++) {
                u32 larger = max_pair(top[q], value);
                value = top[q] + value - larger;  // the smaller, in both halves: no half can borrow from the other
                top[q] = larger;
            }
        }
        u32 above_low = top[KEEP - 1] & 0xffffu, above_high = top[KEEP - 1] >> 16;
        u32 below_low = top[KEEP] & 0xffffu, below_high = top[KEEP] >> 16;
#pragma unroll
        for (int k = 0; k < STRIPE; k++) {
            if (k < width) {
                u32 low = (x[k] & 0xffffu) >= above_low ? below_low : above_low;
                u32 high = (x[k] >> 16) >= above_high ? below_high : above_high;
                *(u32*)(own_thresholds + column[k] * rows + r) = high << 16 | low;
                sum[k] += low + high;
            }
        }
    }
#pragma unroll
    for (int k = 0; k < STRIPE; k++) {  // in halves: 32 * 65535 < 2**32
        u32 low = __reduce_add_sync(EVERYONE, sum[k] & 0xffffu);
        u32 high = __reduce_add_sync(EVERYONE, sum[k] >> 16);
        if (threadIdx.x % 32 == 0 && k < width) atomicAdd(total + k, low + ((u64)high << 16));
    }
    __syncthreads();
    if ((int)threadIdx.x < width) threshold_sum[state + order[state + begin + threadIdx.x]] = total[threadIdx.x];
}
