/* A stand-in for NVIDIA's libnvidia-ml.so.1, compiled by the tests.
 *
 * It reads the file that NVML_STANDIN names at every call, so a test can change the machine while the daemon runs:
 *     driver 570.86.10
 *     hang                      every call of a card waits for ever
 *     card UUID NAME_ TOTAL_MIB USED_MIB UTILISATION TEMPERATURE MILLIWATTS ERROR PID,PID|-
 * In a name "_" stands for a space. ERROR is NVML's number that the card answers with (15: lost), 0 for none.
 * With no file (or an empty driver line) the driver is not loaded.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST 16
enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, NOT_LOADED = 9 };

struct card {
    char uuid[96], name[96], pids[256];
    unsigned long long total, used;
    int utilisation, temperature, milliwatts, error;
};
struct memory { unsigned long long total, free, used; };
struct load { unsigned int gpu, memory; };
struct process { unsigned int pid; unsigned long long used; unsigned int instance, compute; };

static struct card cards[MOST];
static char driver[64];
static int opened, hanging;

static int read_state(void) {
    char line[1024];
    int count = 0;
    const char *path = getenv("NVML_STANDIN");
    FILE *file = path ? fopen(path, "r") : NULL;
    driver[0] = 0;
    hanging = 0;
    if (!file) return 0;
    while (fgets(line, sizeof line, file) && count < MOST) {
        struct card *c = &cards[count];
        if (sscanf(line, "driver %63s", driver) == 1) continue;
        if (!strncmp(line, "hang", 4)) { hanging = 1; continue; }
        if (sscanf(line, "card %95s %95s %llu %llu %d %d %d %d %255s", c->uuid, c->name, &c->total, &c->used,
                   &c->utilisation, &c->temperature, &c->milliwatts, &c->error, c->pids) != 9) continue;
        for (char *at = c->name; *at; at++) if (*at == '_') *at = ' ';
        count++;
    }
    fclose(file);
    return count;
}

/* A handle is the card's number and one, so that it is never NULL. */
static int find(void *handle, struct card **found) {
    int count = read_state(), index = (int)(long)handle - 1;
    if (hanging) for (;;) pause();
    if (index < 0 || index >= count) return 15;
    *found = &cards[index];
    return (*found)->error;
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; read_state(); return opened = 1, driver[0] ? SUCCESS : NOT_LOADED; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { opened = 0; return SUCCESS; }
const char *nvmlErrorString(int error) { return error == 15 ? "GPU is lost" : "Unknown Error"; }

int nvmlSystemGetDriverVersion(char *text, unsigned int size) {
    read_state();
    snprintf(text, size, "%s", driver);
    return opened ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    if (!opened) return UNINITIALIZED;
    *count = (unsigned int)read_state();
    if (hanging) for (;;) pause();
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    struct card *c;
    *handle = (void *)(long)(index + 1);
    return find(*handle, &c);
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned int size) {
    struct card *c;
    int error = find(handle, &c);
    if (!error) snprintf(text, size, "%s", c->uuid);
    return error;
}

int nvmlDeviceGetName(void *handle, char *text, unsigned int size) {
    struct card *c;
    int error = find(handle, &c);
    if (!error) snprintf(text, size, "%s", c->name);
    return error;
}

int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
    struct card *c;
    int error = find(handle, &c);
    if (error) return error;
    memory->total = c->total << 20;
    memory->used = c->used << 20;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *handle, struct load *load) {
    struct card *c;
    int error = find(handle, &c);
    if (error) return error;
    if (c->utilisation < 0) return NOT_SUPPORTED;
    load->gpu = (unsigned int)c->utilisation;
    load->memory = 0;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned int *celsius) {
    struct card *c;
    int error = find(handle, &c);
    (void)sensor;
    if (!error) *celsius = (unsigned int)c->temperature;
    return error;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned int *milliwatts) {
    struct card *c;
    int error = find(handle, &c);
    if (!error) *milliwatts = (unsigned int)c->milliwatts;
    return error;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *count, struct process *found) {
    struct card *c;
    unsigned int room = *count, n = 0;
    int error = find(handle, &c);
    if (error) return error;
    for (char *at = c->pids; *at >= '0' && *at <= '9'; n++) {
        unsigned int pid = (unsigned int)strtoul(at, &at, 10);
        if (*at == ',') at++;
        if (found && n < room) found[n] = (struct process){.pid = pid, .used = 1ULL << 20};
    }
    *count = n;
    return n > room ? INSUFFICIENT_SIZE : SUCCESS;
}
