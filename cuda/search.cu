// The channel-order search on CUDA: the move of tfmot_asp/permutation/search/moves.py, round for round and bit for bit.
//
// A task is one block of stripes of one chain of one matrix. A step is four launches over all tasks, each of which makes
// its own next round: pick_columns, excess_product, assign, refresh_stripes. All sums are of integers, every minimum is
// taken at the lowest index, and random numbers are functions of (key, counter): the result depends neither on launch
// geometry, scheduling or device, nor on what else is searched at the same time.
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

// One position of every stripe, and the column there. Launch: (tasks), THREADS.
extern "C" __global__ void pick_columns(
    const Task* tasks, const int* dealt, const u64* keys, i64 step, const int* order, int* position, int* index) {
    const Task& task = tasks[blockIdx.x];
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

// Adds sum over rows of max(x_j, b_i) to excess[task][i][j], for x_j = codes[index[j]], b_i = thresholds[index[i]].
// Launch: (pieces of work), THREADS; a piece is four ints, task, tile of i, tile of j, split of the rows; each thread owns
// 4 x 4 sums.
extern "C" __global__ void excess_product(
    const Task* tasks, const int* work, const int* index, const u16* codes, const u16* thresholds, i64 rows_per_split,
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
    for (int a = 0; a < 4; a++)
        for (int c = 0; c < 4; c++) {
            int i = i0 + ti + 16 * a;
            int j = j0 + tj + 16 * c;
            if (i < size && j < size) atomicAdd(excess + task.square + (i64)i * size + j, (u64)wide[a][c]);
        }
}

// What one lane finds: its smallest value and its next, each at the lowest index.
struct Two {
    int best, best_at, next, next_at;
};

__device__ __forceinline__ void consider(Two& two, int value, int at) {
    if (value < two.best) {
        two.next = two.best;
        two.next_at = two.best_at;
        two.best = value;
        two.best_at = at;
    } else if (value < two.next) {
        two.next = value;
        two.next_at = at;
    }
}

__device__ __forceinline__ int lowest_at(int value, int at, int smallest) {
    return __reduce_min_sync(0xffffffffu, value == smallest ? at : FAR);
}

// Row i of the costs: the first rows that fit are kept in shared memory.
struct Costs {
    const int* near_rows;
    const int* far_rows;
    int near_count, size;
    __device__ __forceinline__ const int* row(int i) const {
        return (i < near_count ? near_rows : far_rows) + (i64)i * size;
    }
};

// assignment.py's _reduce_rows, by one warp.
__device__ int reduce_rows(
    const Costs& cost, int* column_of_row, int* row_of_column, int* potential, int* free_rows, int waiting) {
    int lane = threadIdx.x;
    int size = cost.size;
    int left = 0;
    int k = 0;
    int evictions = 8 * size;
    while (k < waiting) {
        int i = free_rows[k];
        k += 1;
        const int* row = cost.row(i);
        Two two = {FAR, FAR, FAR, FAR};
        for (int j = lane; j < size; j += 32) consider(two, row[j] - potential[j], j);
        int best = __reduce_min_sync(0xffffffffu, two.best);
        int column = lowest_at(two.best, two.best_at, best);
        bool mine = two.best_at == column;
        int rest = mine ? two.next : two.best;
        int rest_at = mine ? two.next_at : two.best_at;
        int second = __reduce_min_sync(0xffffffffu, rest);
        int second_column = lowest_at(rest, rest_at, second);
        int owner = row_of_column[column];
        bool lower = best < second && second != FAR;
        bool strict = best < second;
        if (!strict && owner >= 0) {
            column = second_column;
            owner = row_of_column[column];
        }
        bool again = false;
        if (owner >= 0) {
            evictions -= 1;
            again = strict && evictions > 0;
        }
        __syncwarp();
        if (lane == 0) {
            if (lower) potential[column] -= second - best;
            row_of_column[column] = i;
            column_of_row[i] = column;
            if (owner >= 0) {
                column_of_row[owner] = -1;
                free_rows[again ? k - 1 : left] = owner;
            }
        }
        if (owner >= 0) {
            if (again)
                k -= 1;
            else
                left += 1;
        }
        __syncwarp();
    }
    return left;
}

// assignment.py's _augment, by one warp.
__device__ void augment(
    const Costs& cost, int* column_of_row, int* row_of_column, int* potential, int* open_distance, int* distance,
    int* previous, int start) {
    int lane = threadIdx.x;
    int size = cost.size;
    const int* row = cost.row(start);
    for (int j = lane; j < size; j += 32) {
        open_distance[j] = row[j] - potential[j];
        distance[j] = FAR;
        previous[j] = start;
    }
    int column, nearest;
    while (true) {
        Two two = {FAR, FAR, FAR, FAR};
        for (int j = lane; j < size; j += 32) consider(two, open_distance[j], j);
        nearest = __reduce_min_sync(0xffffffffu, two.best);
        column = lowest_at(two.best, two.best_at, nearest);
        int owner = row_of_column[column];
        if (owner < 0) break;
        row = cost.row(owner);
        int offset = row[column] - potential[column] - nearest;
        if (column % 32 == lane) {
            distance[column] = nearest;
            open_distance[column] = FAR;
        }
        for (int j = lane; j < size; j += 32) {
            int through = row[j] - potential[j] - offset;
            if (through < open_distance[j] && distance[j] == FAR) {
                open_distance[j] = through;
                previous[j] = owner;
            }
        }
    }
    __syncwarp();
    for (int j = lane; j < size; j += 32)
        if (distance[j] != FAR) potential[j] += distance[j] - nearest;
    __syncwarp();
    if (lane == 0) {
        while (true) {
            int i = previous[column];
            row_of_column[column] = i;
            int before = column_of_row[i];
            column_of_row[i] = column;
            if (i == start) break;
            column = before;
        }
    }
    __syncwarp();
}

__device__ void least_and_most(i64 low, i64 high, i64* shared_low, i64* shared_high) {
    int t = threadIdx.x;
    shared_low[t] = low;
    shared_high[t] = high;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) {
            if (shared_low[t + half] < shared_low[t]) shared_low[t] = shared_low[t + half];
            if (shared_high[t + half] > shared_high[t]) shared_high[t] = shared_high[t + half];
        }
        __syncthreads();
    }
}

// Solves each task's assignment and writes its columns to their new positions. Launch: (tasks), THREADS, with shared_ints
// ints of dynamic shared memory, 7 for each stripe of the largest task at least. Leaves excess zeroed for the next round.
extern "C" __global__ void assign(
    const Task* tasks, const u64* keys, i64 step, const i64* table, const u64* threshold_sum, int shared_ints,
    const int* position, const int* index, u64* excess, int* cost, int* order, int* changed) {
    DYNAMIC_SHARED(scratch);
    __shared__ i64 shared_low[THREADS];
    __shared__ i64 shared_high[THREADS];
    const Task& task = tasks[blockIdx.x];
    int size = (int)task.size;
    int* potential = scratch;
    int* open_distance = scratch + size;
    int* distance = scratch + 2 * size;
    int* previous = scratch + 3 * size;
    int* free_rows = scratch + 4 * size;
    int* column_of_row = scratch + 5 * size;
    int* row_of_column = scratch + 6 * size;
    int* near = scratch + 7 * size;
    int near_rows = (shared_ints - 7 * size) / size;
    int* far = cost + task.square;
    u64* sums = excess + task.square;
    const int* picked = index + task.slot;
    const u64* base = threshold_sum + task.state;
    u64 noise = draw(key_of(task, keys, step), 2);
    i64 cold = task.total / 20 > 1 ? task.total / 20 : 1;
    i64 hot = task.total - cold - step > 0 ? task.total - cold - step : 0;
    i64 temperature = task.hottest * hot / (task.total - cold > 1 ? task.total - cold : 1);

    i64 low = 0x7fffffffffffffffll;
    i64 high = -0x7fffffffffffffffll;
    for (int e = threadIdx.x; e < size * size; e += THREADS) {
        int i = e / size;
        int j = e % size;
        i64 value = (i64)(sums[(i64)i * size + j] - base[picked[i]]);
        if (temperature > 0) value += (table[draw(noise, (u64)e) >> 52] * temperature) >> 16;
        sums[(i64)i * size + j] = (u64)value;
        if (value < low) low = value;
        if (value > high) high = value;
    }
    least_and_most(low, high, shared_low, shared_high);
    low = shared_low[0];
    high = shared_high[0];
    int shift = 0;
    while ((high - low) >> shift >= 1ll << COST_BITS) shift += 1;
    Costs costs = {near, far, near_rows < size ? near_rows : size, size};
    for (int e = threadIdx.x; e < size * size; e += THREADS) {
        int i = e / size;
        int j = e % size;
        int value = (int)((high - (i64)sums[(i64)i * size + j]) >> shift);
        sums[(i64)i * size + j] = 0;
        (i < costs.near_count ? near : far)[(i64)i * size + j] = value;
    }
    __syncthreads();
    for (int j = threadIdx.x; j < size; j += THREADS) {
        i64 sum = 0;
        for (int i = 0; i < size; i++) sum += costs.row(i)[j];
        potential[j] = (int)(sum / size);
        row_of_column[j] = -1;
        column_of_row[j] = -1;
        free_rows[j] = j;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        int left = reduce_rows(costs, column_of_row, row_of_column, potential, free_rows, size);
        left = reduce_rows(costs, column_of_row, row_of_column, potential, free_rows, left);
        for (int k = 0; k < left; k++)
            augment(costs, column_of_row, row_of_column, potential, open_distance, distance, previous, free_rows[k]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += THREADS) {
        order[task.state + position[task.slot + i]] = picked[column_of_row[i]];
        changed[task.slot + i] = column_of_row[i] != i;
    }
}

// Recomputes thresholds, and their sums over the rows, of the stripes marked in changed (of all, if it is null).
// Launch: (slots of all tasks), THREADS; task_of_slot says whose each is.
extern "C" __global__ void refresh_stripes(
    const Task* tasks, const int* task_of_slot, const int* dealt, i64 step, const int* changed, const u16* codes,
    u16* thresholds, const int* order, u64* threshold_sum) {
    __shared__ u64 total[STRIPE];
    if (changed != 0 && !changed[blockIdx.x]) return;
    const Task& task = tasks[task_of_slot[blockIdx.x]];
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
    for (int k = 0; k < STRIPE; k++)
        if (k < width) atomicAdd(total + k, (u64)sum[k]);
    __syncthreads();
    if ((int)threadIdx.x < width) threshold_sum[state + order[state + begin + threadIdx.x]] = total[threadIdx.x];
}
