/* A libnvidia-ml.so.1 that answers from the key=value file named by FAKE_NVML.

   The file is read again when it was replaced, so a test changes the machine by replacing it. A key
   that is absent or empty answers NOT_SUPPORTED; a number that cannot be read answers UNKNOWN.
   Structs have the names pynvml gives them, so that a test can compare their sizes. */
#define _POSIX_C_SOURCE 200809L
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
enum { INSUFFICIENT_SIZE = 7, TIMEOUT = 10, MEMORY = 20, VERSION_MISMATCH = 25, UNKNOWN = 999 };
enum { GPUS = 64, SLICES = 7, STRIDE = 1 + SLICES, SLOTS = GPUS * STRIDE };
enum { XID_CRITICAL_ERROR = 8, WAIT_STEP_MS = 5, VALUE_UINT = 1, VALUE_ULONGLONG = 3 };

typedef uint32_t u32;
typedef uint64_t u64;
typedef const struct { char unused; } *Handle;
typedef struct { bool watched[SLOTS]; u64 seen[SLOTS]; } EventSet;

typedef struct { u64 total, free, used; } c_nvmlMemory_t;
typedef struct { u32 version; u64 total, reserved, free, used; } c_nvmlMemory_v2_t;
typedef struct { u32 gpu, memory; } c_nvmlUtilization_t;
typedef struct { u32 pid; u64 memory; u32 gpu_instance, compute_instance; } c_nvmlProcessInfo_v3_t;
typedef struct {
    char legacy[16];
    u32 domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} nvmlPciInfo_t;
typedef struct {
    u32 version;
    uint8_t cluster_uuid[16];
    u32 status, clique;
    uint8_t state, padding[3]; /* pynvml reads all four as the state; the driver writes one */
    u32 health;
} c_nvmlGpuFabricInfoV_t;
typedef struct {
    u32 id, scope;
    int64_t timestamp, latency_us;
    u32 type, status;
    union { double real; u64 whole; } value;
} c_nvmlFieldValue_t;
typedef struct {
    Handle device;
    u64 type, data;
    u32 gpu_instance, compute_instance;
} c_nvmlEventData_t;

#define SIZE(type) {#type, sizeof(type)}
size_t fake_nvml_sizeof(const char *name) {
    static const struct { const char *name; size_t size; } sizes[] = {
        SIZE(c_nvmlMemory_t), SIZE(c_nvmlMemory_v2_t), SIZE(c_nvmlUtilization_t),
        SIZE(c_nvmlProcessInfo_v3_t), SIZE(nvmlPciInfo_t), SIZE(c_nvmlGpuFabricInfoV_t),
        SIZE(c_nvmlFieldValue_t), SIZE(c_nvmlEventData_t),
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!strcmp(sizes[i].name, name)) return sizes[i].size;
    return 0;
}

/* The description: NUL-terminated lines, a copy per thread because ctypes releases the GIL. */

static _Thread_local char text[1 << 17];
static _Thread_local size_t length;
static _Thread_local struct stat seen;
static _Thread_local bool sound; /* without injections, which are dear to look for */

static bool is_unchanged(const char *path) {
    struct stat before = seen;
    return path && !stat(path, &seen) && length && seen.st_ino == before.st_ino
        && !memcmp(&seen.st_mtim, &before.st_mtim, sizeof seen.st_mtim);
}

static int reload(void) {
    const char *path = getenv("FAKE_NVML");
    if (is_unchanged(path)) return OK;
    FILE *file = path ? fopen(path, "r") : NULL;
    length = file ? fread(text, 1, sizeof text - 1, file) : 0;
    bool whole = file && feof(file);
    if (file) fclose(file);
    if (!whole) {
        fprintf(stderr, "fake NVML: cannot read FAKE_NVML=%s\n", path ? path : "");
        length = 0;
    }
    text[length] = '\0';
    sound = !strstr(text, "error.") && !strstr(text, "delay_ms.");
    for (size_t i = 0; i < length; i++)
        if (text[i] == '\n') text[i] = '\0';
    return whole ? OK : UNKNOWN;
}

static const char *lookup(const char *scope, const char *name) {
    char key[128];
    int size = snprintf(key, sizeof key, "%s%s=", scope, name);
    for (const char *line = text; line < text + length; line += strlen(line) + 1)
        if (!strncmp(line, key, size)) return line + size;
    return NULL;
}

/* Handles are addresses in an array where each GPU is followed by its MIG slices. */

static const char slots[SLOTS];

static int slot(Handle device) { return (int)((const char *)device - slots); }
static int gpu_of(Handle device) { return slot(device) / STRIDE; }
static int slice_of(Handle device) { return slot(device) % STRIDE - 1; }
static Handle handle(int gpu, int slice) { return (Handle)(slots + gpu * STRIDE + 1 + slice); }
static bool known(Handle device) {
    return (const char *)device >= slots && (const char *)device < slots + SLOTS;
}

/* From the narrowest scope to the widest; an empty value hides the wider ones. */
static const char *search(Handle device, int count, const char *const names[]) {
    char scopes[5][24] = {{0}};
    int last = 0;
    if (device && slice_of(device) >= 0) {
        snprintf(scopes[last++], sizeof *scopes, "gpu%d.mig%d.", gpu_of(device), slice_of(device));
        snprintf(scopes[last++], sizeof *scopes, "gpu.mig.");
    }
    if (device) {
        snprintf(scopes[last++], sizeof *scopes, "gpu%d.", gpu_of(device));
        snprintf(scopes[last++], sizeof *scopes, "gpu.");
    }
    for (int i = 0; i < (last + 1) * count; i++) {
        const char *found = lookup(scopes[i / count], names[i % count]);
        if (found) return *found ? found : NULL;
    }
    return NULL;
}

static const char *value(Handle device, const char *key) { return search(device, 1, &key); }

static int parse(const char *digits, u64 *out) {
    char *end;
    *out = strtoull(digits, &end, 0);
    if (!*end && end != digits) return OK;
    fprintf(stderr, "fake NVML: %s is not a number\n", digits);
    return UNKNOWN;
}

static int number(Handle device, const char *key, u64 *out) {
    const char *found = value(device, key);
    return found ? parse(found, out) : NOT_SUPPORTED;
}

static u64 number_or(Handle device, const char *key, u64 otherwise) {
    u64 found;
    return number(device, key, &found) ? otherwise : found;
}

static int count_of(Handle device, const char *key, int limit) {
    u64 count = number_or(device, key, 0);
    return count < (u64)limit ? (int)count : limit;
}

static int string(Handle device, const char *key, char *out, u32 size) {
    const char *found = value(device, key);
    if (!found) return NOT_SUPPORTED;
    return snprintf(out, size, "%s", found) < (int)size ? OK : INSUFFICIENT_SIZE;
}

/* Injection: "error.MemoryInfo" covers MemoryInfo_v2 too, and "error.*" every function. */

static u64 injected(const char *kind, const char *function, Handle device) {
    if (sound) return 0;
    const char *suffix = strstr(function, "_v");
    int bare = (int)(suffix ? (size_t)(suffix - function) : strlen(function));
    char exact[80], any_version[80], any[80];
    snprintf(exact, sizeof exact, "%s.%s", kind, function);
    snprintf(any_version, sizeof any_version, "%s.%.*s", kind, bare, function);
    snprintf(any, sizeof any, "%s.*", kind);
    const char *found = search(device, 3, (const char *const[]){exact, any_version, any});
    u64 amount = 0;
    return found && parse(found, &amount) ? UNKNOWN : amount;
}

static void sleep_ms(u64 ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

#define TRY(expression) do { int status_ = (expression); if (status_) return status_; } while (0)

static atomic_int users;

/* Without a counter the call passes untouched, as the second half of a two-call protocol. */
static int gate(const char *function, Handle device, atomic_uint *calls) {
    TRY(reload());
    if (!users && strcmp(function, "InitWithFlags")) return UNINITIALIZED;
    if (!calls || atomic_fetch_add(calls, 1) < injected("after", function, device)) return OK;
    for (u64 ms = 0; ms < injected("delay_ms", function, device); ms += WAIT_STEP_MS) {
        sleep_ms(WAIT_STEP_MS);
        TRY(reload()); /* so that whoever is tired of waiting can end it */
    }
    return (int)injected("error", function, device);
}

#define READ(key, target) \
    do { u64 number_; TRY(number(device, key, &number_)); (target) = number_; } while (0)
#define VERSION(record, revision) \
    if ((record)->version != (sizeof *(record) | (revision) << 24)) return VERSION_MISMATCH
#define SYSTEM(symbol, function, arguments, ...) \
    int symbol arguments { \
        static atomic_uint calls; \
        Handle device = NULL; \
        TRY(gate(#function, device, &calls)); \
        __VA_ARGS__; \
        return OK; \
    }
#define ON_DEVICE(symbol, function, arguments, counted, ...) \
    int symbol arguments { \
        static atomic_uint calls[SLOTS]; \
        if (!known(device)) return INVALID_ARGUMENT; \
        TRY(gate(#function, device, counted ? calls + slot(device) : NULL)); \
        __VA_ARGS__; \
        return OK; \
    }
#define DEVICE(function, arguments, ...) \
    ON_DEVICE(nvmlDeviceGet##function, function, arguments, true, __VA_ARGS__)

/* The library and the system. */

SYSTEM(nvmlInitWithFlags, InitWithFlags, (u32 flags), (void)flags, users++)
SYSTEM(nvmlShutdown, Shutdown, (void), users--)
SYSTEM(nvmlSystemGetDriverVersion, DriverVersion, (char *out, u32 size),
       TRY(string(device, "sys.driver", out, size)))
SYSTEM(nvmlSystemGetNVMLVersion, NVMLVersion, (char *out, u32 size),
       TRY(string(device, "sys.nvml", out, size)))
SYSTEM(nvmlSystemGetCudaDriverVersion_v2, CudaDriverVersion_v2, (int *out), READ("sys.cuda", *out))
SYSTEM(nvmlDeviceGetCount_v2, Count_v2, (u32 *out), READ("sys.count", *out))

const char *nvmlErrorString(int code) {
    static _Thread_local char message[32];
    snprintf(message, sizeof message, "fake NVML error %d", code);
    return message;
}

/* Handles: the device is looked for before the gate, which asks whether it is a broken one. */

static int gpus(void) { return reload() ? 0 : count_of(NULL, "sys.count", GPUS); }
static int slices(Handle device) {
    return number_or(device, "mig.mode", 0) ? count_of(device, "mig.count", SLICES) : 0;
}

static bool same_uuid(Handle device, const char *wanted) {
    const char *uuid = value(device, "uuid");
    return uuid && !strcmp(uuid, wanted);
}

static bool split(const char *bus_id, u32 out[3]) {
    return bus_id && sscanf(bus_id, "%x:%x:%x", out, out + 1, out + 2) == 3;
}

static bool same_bus_id(Handle device, const char *wanted) {
    u32 one[3], other[3];
    return split(value(device, "pci"), one) && split(wanted, other)
        && !memcmp(one, other, sizeof one);
}

static Handle first(bool (*matches)(Handle, const char *), const char *wanted) {
    for (int gpu = 0, count = gpus(); gpu < count; gpu++)
        for (int slice = -1; slice < slices(handle(gpu, -1)); slice++)
            if (matches(handle(gpu, slice), wanted)) return handle(gpu, slice);
    return NULL;
}

#define HANDLE(function, key, found, missing) \
    static ON_DEVICE(pass_##function, function, (Handle device, Handle *out), true, *out = device) \
    int nvmlDeviceGet##function(key, Handle *out) { \
        Handle device = found; \
        if (!device) return users ? missing : UNINITIALIZED; \
        return pass_##function(device, out); \
    }
HANDLE(HandleByIndex_v2, u32 index, index < (u32)gpus() ? handle(index, -1) : NULL,
       INVALID_ARGUMENT)
HANDLE(HandleByUUID, const char *uuid, first(same_uuid, uuid), NOT_FOUND)
HANDLE(HandleByPciBusId_v2, const char *bus_id, first(same_bus_id, bus_id), NOT_FOUND)

DEVICE(Index, (Handle device, u32 *out),
       *out = slice_of(device) < 0 ? gpu_of(device) : slice_of(device))
DEVICE(MaxMigDeviceCount, (Handle device, u32 *out),
       *out = number_or(device, "mig.mode", 0) ? number_or(device, "mig.max", 0) : 0)
DEVICE(MigDeviceHandleByIndex, (Handle device, u32 index, Handle *out),
       if (!number_or(device, "mig.mode", 0)) return NOT_SUPPORTED;
       if (index >= number_or(device, "mig.max", 0)) return INVALID_ARGUMENT;
       if (index >= (u32)slices(device)) return NOT_FOUND;
       *out = handle(gpu_of(device), index))
DEVICE(DeviceHandleFromMigDeviceHandle, (Handle device, Handle *out),
       *out = handle(gpu_of(device), -1))

ON_DEVICE(nvmlDeviceIsMigDeviceHandle, IsMigDeviceHandle, (Handle device, u32 *out), true,
          *out = slice_of(device) >= 0)

/* One device: keys to answers. */

#define NUMBER(function, type, key) \
    DEVICE(function, (Handle device, type *out), READ(key, *out))
#define PAIR(function, one_key, two_key) \
    DEVICE(function, (Handle device, u32 *one, u32 *two), READ(one_key, *one); READ(two_key, *two))

NUMBER(ComputeInstanceId, u32, "ci")
NUMBER(ComputeMode, u32, "compute_mode")
NUMBER(CurrPcieLinkGeneration, u32, "pcie.gen")
NUMBER(CurrPcieLinkWidth, u32, "pcie.width")
NUMBER(CurrentClocksEventReasons, u64, "clocks.reasons")
NUMBER(CurrentClocksThrottleReasons, u64, "clocks.reasons")
NUMBER(GpuInstanceId, u32, "gi")
NUMBER(MaxPcieLinkGeneration, u32, "pcie.max_gen")
NUMBER(MaxPcieLinkWidth, u32, "pcie.max_width")
NUMBER(PersistenceMode, u32, "persistence")
NUMBER(PowerUsage, u32, "power")
PAIR(CudaComputeCapability, "cc.major", "cc.minor")
PAIR(EccMode, "ecc.mode", "ecc.pending")
PAIR(MigMode, "mig.mode", "mig.pending")

DEVICE(Name, (Handle device, char *out, u32 size), TRY(string(device, "name", out, size)))
DEVICE(UUID, (Handle device, char *out, u32 size), TRY(string(device, "uuid", out, size)))
DEVICE(Temperature, (Handle device, u32 sensor, u32 *out),
       if (sensor) return INVALID_ARGUMENT;
       READ("temperature", *out))
DEVICE(UtilizationRates, (Handle device, c_nvmlUtilization_t *out),
       READ("util.gpu", out->gpu);
       READ("util.memory", out->memory))
DEVICE(RemappedRows, (Handle device, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failed),
       READ("rows.corrected", *corrected);
       READ("rows.uncorrected", *uncorrected);
       READ("rows.pending", *pending);
       READ("rows.failed", *failed))
DEVICE(GpuFabricInfoV, (Handle device, c_nvmlGpuFabricInfoV_t *out),
       VERSION(out, 2u);
       READ("fabric.state", out->state);
       READ("fabric.status", out->status);
       READ("fabric.clique", out->clique);
       READ("fabric.health", out->health))

DEVICE(ClockInfo, (Handle device, u32 clock, u32 *out),
       static const char *const keys[] = {"clock.graphics", "clock.sm", "clock.memory"};
       if (clock >= sizeof keys / sizeof *keys) return INVALID_ARGUMENT;
       READ(keys[clock], *out))
DEVICE(MemoryAffinity, (Handle device, u32 words, unsigned long *out, u32 scope),
       u64 node;
       if (scope > 1) return INVALID_ARGUMENT;
       TRY(number(device, "numa", &node));
       if (node / 64 >= words) return INSUFFICIENT_SIZE;
       memset(out, 0, words * sizeof *out);
       out[node / 64] = 1ul << node % 64)
DEVICE(TotalEccErrors, (Handle device, u32 type, u32 counter, u64 *out),
       static const char *const keys[] = {"ecc.corrected.volatile", "ecc.corrected.aggregate",
                                          "ecc.uncorrected.volatile", "ecc.uncorrected.aggregate"};
       if (type > 1 || counter > 1) return INVALID_ARGUMENT;
       READ(keys[2 * type + counter], *out))

static int memory(Handle device, c_nvmlMemory_v2_t *out) {
    READ("mem.total", out->total);
    READ("mem.reserved", out->reserved);
    READ("mem.used", out->used);
    out->free = out->total - out->reserved - out->used;
    return OK;
}

DEVICE(MemoryInfo_v2, (Handle device, c_nvmlMemory_v2_t *out),
       VERSION(out, 2u);
       TRY(memory(device, out)))
DEVICE(MemoryInfo, (Handle device, c_nvmlMemory_t *out),
       c_nvmlMemory_v2_t all;
       TRY(memory(device, &all));
       *out = (c_nvmlMemory_t){all.total, all.free, all.used + all.reserved})

DEVICE(PciInfo_v3, (Handle device, nvmlPciInfo_t *out),
       u32 place[3];
       TRY(string(device, "pci", out->bus_id, sizeof out->bus_id));
       if (!split(out->bus_id, place)) return UNKNOWN;
       READ("pci.id", out->device_id);
       out->domain = place[0], out->bus = place[1], out->device = place[2];
       snprintf(out->legacy, sizeof out->legacy, "%s", out->bus_id + strlen("0000")))

DEVICE(FieldValues, (Handle device, int count, c_nvmlFieldValue_t *values),
       for (c_nvmlFieldValue_t *field = values; field < values + count; field++) {
           char key[32];
           snprintf(key, sizeof key, "field.%u", field->id);
           field->status = number(device, key, &field->value.whole);
           field->type = field->value.whole > UINT32_MAX ? VALUE_ULONGLONG : VALUE_UINT;
       })

static int has_lane(Handle device, u32 lane) {
    u64 lanes = number_or(device, "nvlink.lanes", 0);
    return lane < lanes ? OK : lanes ? INVALID_ARGUMENT : NOT_SUPPORTED;
}

DEVICE(NvLinkState, (Handle device, u32 lane, u32 *out),
       char key[32];
       TRY(has_lane(device, lane));
       snprintf(key, sizeof key, "nvlink.%u", lane);
       *out = number_or(device, key, 1))
DEVICE(NvLinkVersion, (Handle device, u32 lane, u32 *out),
       TRY(has_lane(device, lane));
       READ("nvlink.version", *out))
DEVICE(NvLinkRemoteDeviceType, (Handle device, u32 lane, u32 *out),
       TRY(has_lane(device, lane));
       READ("nvlink.remote", *out))

/* Two devices: the pair in either order, then the default. */

static int between(Handle one, Handle two, const char *kind, const char *what, u32 *out) {
    char pair[48], reverse[48], any[48];
    u64 status;
    if (!known(two)) return INVALID_ARGUMENT;
    snprintf(pair, sizeof pair, "%s.%d.%d%s", kind, gpu_of(one), gpu_of(two), what);
    snprintf(reverse, sizeof reverse, "%s.%d.%d%s", kind, gpu_of(two), gpu_of(one), what);
    snprintf(any, sizeof any, "%s%s", kind, what);
    const char *found = search(NULL, 3, (const char *const[]){pair, reverse, any});
    if (!found) return NOT_SUPPORTED;
    TRY(parse(found, &status));
    *out = status;
    return OK;
}

DEVICE(TopologyCommonAncestor, (Handle device, Handle other, u32 *out),
       TRY(between(device, other, "topo", "", out)))
DEVICE(P2PStatus, (Handle device, Handle other, u32 which, u32 *out),
       static const char *const kinds[] = {".read", ".write", ".nvlink", ".atomics", ".pci"};
       if (which >= sizeof kinds / sizeof *kinds) return INVALID_ARGUMENT;
       TRY(between(device, other, "p2p", kinds[which], out)))

/* Processes are "1234:1073741824,999:unknown". Only the call that asks for their number counts. */

static int processes(Handle device, const char *key, u32 *count, c_nvmlProcessInfo_v3_t *out) {
    const char *next = value(device, key);
    u32 room = out ? *count : 0, pid, gi = number_or(device, "gi", UINT32_MAX);
    char amount[24];
    int used = 0;
    for (*count = 0; next && *next; next += used + (next[used] == ','), ++*count) {
        u64 bytes = UINT64_MAX;
        if (sscanf(next, "%u:%23[^,]%n", &pid, amount, &used) != 2) return UNKNOWN;
        if (strcmp(amount, "unknown")) TRY(parse(amount, &bytes));
        if (*count < room)
            out[*count] = (c_nvmlProcessInfo_v3_t){pid, bytes, gi, number_or(device, "ci", gi)};
    }
    return *count > room ? INSUFFICIENT_SIZE : OK;
}

#define PROCESSES(function, key) \
    ON_DEVICE(nvmlDeviceGet##function, function, \
              (Handle device, u32 *count, c_nvmlProcessInfo_v3_t *out), !out, \
              TRY(processes(device, key, count, out)))
PROCESSES(ComputeRunningProcesses_v3, "processes")
PROCESSES(MPSComputeRunningProcesses_v3, "processes.mps")

/* Events: a registered device reports each XID that its "xid" key changes to. */

static bool next_event(EventSet *set, c_nvmlEventData_t *out) {
    for (int i = 0; i < SLOTS; i++) {
        if (!set->watched[i]) continue;
        Handle device = (Handle)(slots + i);
        u64 before = set->seen[i], xid = set->seen[i] = number_or(device, "xid", 0);
        if (!xid || xid == before) continue;
        *out = (c_nvmlEventData_t){device, XID_CRITICAL_ERROR, xid, UINT32_MAX, UINT32_MAX};
        return true;
    }
    return false;
}

ON_DEVICE(nvmlDeviceRegisterEvents, RegisterEvents, (Handle device, u64 types, EventSet *set), true,
          set->watched[slot(device)] = types & XID_CRITICAL_ERROR;
          set->seen[slot(device)] = number_or(device, "xid", 0))
SYSTEM(nvmlEventSetCreate, EventSetCreate, (EventSet **out),
       *out = calloc(1, sizeof **out);
       if (!*out) return MEMORY)
SYSTEM(nvmlEventSetWait_v2, EventSetWait_v2, (EventSet *set, c_nvmlEventData_t *out, u32 ms),
       for (u64 waited = 0; !next_event(set, out); waited += WAIT_STEP_MS) {
           if (waited >= ms) return TIMEOUT;
           sleep_ms(WAIT_STEP_MS);
           TRY(reload());
       })
SYSTEM(nvmlEventSetFree, EventSetFree, (EventSet *set), free(set))
