/* NVML as far as it is used, over a text file that a test writes: see fake_nvml.py for its lines.

   The functions and their results are those of nvml.h. The file is read anew by every call. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MOST = 64, NOT_AVAILABLE = -1 };

typedef struct { char uuid[96]; char parent[96]; long long total, used; int mig; } Device;
typedef struct { char uuid[96]; unsigned pid; long long used; } Process;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } ProcessInfo;

static Device devices[MOST];
static Process processes[MOST];
static int device_count, process_count;

static int fails(const char *function) {
    char line[256], kind[32], one[96], two[96], log[4096];
    snprintf(log, sizeof log, "%s.calls", getenv("FAKE_NVML"));
    FILE *calls = fopen(log, "a");
    if (calls) {
        fprintf(calls, "%s\n", function);
        fclose(calls);
    }
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    int error = SUCCESS;
    device_count = process_count = 0;
    if (!file) return 12;
    while (fgets(line, sizeof line, file)) {
        long long first = 0, second = 0;
        if (sscanf(line, "%31s %95s", kind, one) != 2) continue;
        if (!strcmp(kind, "error")) {
            if (!strcmp(one, function)) sscanf(line, "%*s %*s %d", &error);
        } else if (!strcmp(kind, "card") && device_count < MOST) {
            Device *device = &devices[device_count++];
            memset(device, 0, sizeof *device);
            strcpy(device->uuid, one);
            sscanf(line, "%*s %*s %lld %lld %d", &device->total, &device->used, &device->mig);
        } else if (!strcmp(kind, "slice") && device_count < MOST) {
            Device *device = &devices[device_count++];
            memset(device, 0, sizeof *device);
            strcpy(device->uuid, one);
            if (sscanf(line, "%*s %*s %95s %lld %lld", two, &first, &second) == 3) {
                strcpy(device->parent, two);
                device->total = first;
                device->used = second;
            }
        } else if (!strcmp(kind, "process") && process_count < MOST) {
            Process *process = &processes[process_count++];
            strcpy(process->uuid, one);
            sscanf(line, "%*s %*s %u %lld", &process->pid, &process->used);
        }
    }
    fclose(file);
    return error;
}

/* A handle is an index and one: devices may come and go between two calls, as they do. */
static Device *device_of(void *handle) {
    long index = (long)handle - 1;
    return index >= 0 && index < device_count ? &devices[index] : NULL;
}

static int nth(const char *parent, unsigned wanted, void **handle) {
    for (long index = 0; index < device_count; index++)
        if (!strcmp(devices[index].parent, parent) && wanted-- == 0) {
            *handle = (void *)(index + 1);
            return SUCCESS;
        }
    return parent[0] ? NOT_FOUND : INVALID_ARGUMENT;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return fails("nvmlInitWithFlags"); }
int nvmlShutdown(void) { return fails("nvmlShutdown"); }
const char *nvmlErrorString(int result) { return result == NOT_FOUND ? "Not Found" : "Some Error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    int error = fails("nvmlDeviceGetCount");
    if (error) return error;
    *count = 0;
    for (int index = 0; index < device_count; index++) *count += !devices[index].parent[0];
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    int error = fails("nvmlDeviceGetHandleByIndex");
    return error ? error : nth("", index, handle);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    int error = fails("nvmlDeviceGetHandleByUUID");
    if (error) return error;
    for (long index = 0; index < device_count; index++)
        if (!strcmp(devices[index].uuid, uuid)) {
            *handle = (void *)(index + 1);
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    int error = fails("nvmlDeviceGetUUID");
    if (error) return error;
    if (!device_of(handle)) return INVALID_ARGUMENT;
    snprintf(uuid, length, "%s", device_of(handle)->uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    int error = fails("nvmlDeviceGetName");
    if (error) return error;
    if (!device_of(handle)) return INVALID_ARGUMENT;
    snprintf(name, length, "a card of nobody's");
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    int error = fails("nvmlDeviceGetMemoryInfo");
    Device *device = device_of(handle);
    if (error) return error;
    if (!device) return INVALID_ARGUMENT;
    memory->total = device->total;
    memory->used = device->used;
    memory->free = device->total - device->used;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    int error = fails("nvmlDeviceGetMigMode");
    if (error) return error;
    if (!device_of(handle)) return INVALID_ARGUMENT;
    if (device_of(handle)->mig < 0) return NOT_SUPPORTED;
    *current = *pending = device_of(handle)->mig;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    int error = fails("nvmlDeviceGetMaxMigDeviceCount");
    (void)handle;
    *count = 7;
    return error;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **slice) {
    int error = fails("nvmlDeviceGetMigDeviceHandleByIndex");
    if (error) return error;
    return device_of(handle) ? nth(device_of(handle)->uuid, index, slice) : INVALID_ARGUMENT;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, ProcessInfo *found) {
    int error = fails("nvmlDeviceGetComputeRunningProcesses");
    unsigned room = *count, there = 0;
    Device *device = device_of(handle);
    if (error) return error;
    if (!device) return INVALID_ARGUMENT;
    for (int index = 0; index < process_count; index++) {
        if (strcmp(processes[index].uuid, device->uuid)) continue;
        if (found && there < room) {
            memset(&found[there], 0, sizeof *found);
            found[there].pid = processes[index].pid;
            found[there].used = (unsigned long long)processes[index].used;
        }
        there++;
    }
    *count = there;
    return there > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, ProcessInfo *found) {
    int error = fails("nvmlDeviceGetGraphicsRunningProcesses");
    (void)handle, (void)found;
    *count = 0;
    return error;
}
