// A libnccl.so.2 whose ranks are threads of one process: calls return at once ("in progress" where NCCL may), and what was called is done
// by the rank that comes last. A rank that never comes leaves the others pending; an aborted rank is an error to the others.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 4, REMOTE = 6, IN_PROGRESS = 7, RANKS = 8, CALLS = 64 };
struct stream { volatile int pending; };
struct call { int kind, peer; const char* from; char* to; size_t bytes; struct stream* stream; };
struct group {
    char id[128];
    int world, joined, aborted, arrived;
    struct call calls[RANKS][CALLS];
    int count[RANKS];
    struct group* next;
};
struct comm { struct group* group; int rank; };
struct config { size_t size; unsigned magic, version; int blocking; };
struct id { char internal[128]; };
enum { REDUCE_SCATTER, ALL_REDUCE, ALL_GATHER, BROADCAST, SEND, RECEIVE };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct group* groups;
static int aborts, ids, damaged_rank, hangs;
static __thread int grouping;
static __thread struct comm* grouped;

int fake_aborts(void) { return aborts; }
void fake_hang(void) { hangs = 1; }
// The next broadcast brings `rank`, not 0, one wrong bit.
void fake_damage(int rank) { damaged_rank = rank; }
int ncclGetVersion(int* version) { return *version = 22809, OK; }
int ncclGetUniqueId(struct id* id) { return memset(id, 7, 128), memcpy(id, &ids, sizeof ids), ids++, OK; }
const char* ncclGetErrorString(int code) {
    return code == REMOTE ? "remote process exited or there was a network error" : code == INVALID ? "invalid argument" : "unknown";
}

int ncclCommInitRankConfig(struct comm** comm, int world, struct id id, int rank, struct config* config) {
    if (config->magic != 0xcafebeef || config->size < 80 || config->blocking != 0 || world > RANKS || rank >= world) return INVALID;
    pthread_mutex_lock(&lock);
    struct group* g = groups;
    while (g && memcmp(g->id, id.internal, 128)) g = g->next;
    if (!g) {
        g = calloc(1, sizeof *g);
        memcpy(g->id, id.internal, 128);
        g->world = world, g->next = groups, groups = g;
    }
    g->joined++;
    *comm = calloc(1, sizeof **comm);
    (*comm)->group = g, (*comm)->rank = rank;
    pthread_mutex_unlock(&lock);
    return IN_PROGRESS;
}

int ncclCommGetAsyncError(struct comm* comm, int* state) {
    pthread_mutex_lock(&lock);
    struct group* g = comm->group;
    *state = g->aborted ? REMOTE : g->joined < g->world ? IN_PROGRESS : OK;
    pthread_mutex_unlock(&lock);
    return OK;
}

int ncclCommAbort(struct comm* comm) {
    while (hangs) sleep(1);
    pthread_mutex_lock(&lock);
    aborts++, comm->group->aborted = 1;
    for (int c = 0; c < comm->group->count[comm->rank]; c++) comm->group->calls[comm->rank][c].stream->pending = 0;
    pthread_mutex_unlock(&lock);
    return free(comm), OK;
}

// The work of the group is done: nothing is left to send.
int ncclCommFinalize(struct comm* comm) { return comm->group->aborted ? REMOTE : OK; }
int ncclCommDestroy(struct comm* comm) { return free(comm), OK; }

static void reduce(struct group* g, int rank) {
    struct call* mine = &g->calls[rank][0];
    size_t count = mine->bytes / 4;
    float* sum = calloc(count, 4);
    for (int r = 0; r < g->world; r++)
        for (size_t i = 0; i < count; i++) sum[i] += ((const float*)g->calls[r][0].from)[rank * count + i];
    memcpy(mine->to, sum, mine->bytes);
    free(sum);
}

static void reduce_to_all(struct group* g) {
    size_t count = g->calls[0][0].bytes / 4;
    float* sum = calloc(count, 4);
    for (int r = 0; r < g->world; r++)
        for (size_t i = 0; i < count; i++) sum[i] += ((const float*)g->calls[r][0].from)[i];
    for (int r = 0; r < g->world; r++) memcpy(g->calls[r][0].to, sum, count * 4);
    free(sum);
}

// All ranks have called: the last one does everybody's work.
static void execute(struct group* g) {
    for (int r = 0; r < g->world; r++)
        for (int c = 0; c < g->count[r]; c++) {
            struct call* call = &g->calls[r][c];
            if (call->kind == REDUCE_SCATTER) reduce(g, r);
            if (call->kind == ALL_GATHER)
                for (int from = 0; from < g->world; from++)
                    memmove(call->to + from * call->bytes, g->calls[from][0].from, call->bytes);
            if (call->kind == ALL_REDUCE && r == 0) reduce_to_all(g);
            if (call->kind == BROADCAST) memmove(call->to, g->calls[call->peer][0].from, call->bytes);
            if (call->kind == BROADCAST && damaged_rank && r == damaged_rank && call->bytes) call->to[call->bytes / 2] ^= 1, damaged_rank = 0;
            if (call->kind == RECEIVE)
                for (int k = 0; k < g->count[call->peer]; k++) {
                    struct call* sent = &g->calls[call->peer][k];
                    if (sent->kind == SEND && sent->peer == r) memcpy(call->to, sent->from, call->bytes);
                }
        }
    for (int r = 0; r < g->world; r++) {
        for (int c = 0; c < g->count[r]; c++) g->calls[r][c].stream->pending = 0;
        g->count[r] = 0;
    }
    g->arrived = 0;
}

static void arrive(struct group* g) {
    if (++g->arrived == g->world) execute(g);
}

static int add(struct comm* comm, struct call call) {
    pthread_mutex_lock(&lock);
    struct group* g = comm->group;
    int usable = !g->aborted && g->count[comm->rank] < CALLS;
    if (usable) {
        call.stream->pending = 1;
        g->calls[comm->rank][g->count[comm->rank]++] = call;
        if (grouping) grouped = comm;
        else arrive(g);
    }
    pthread_mutex_unlock(&lock);
    return usable ? grouping ? OK : IN_PROGRESS : REMOTE;
}

static size_t width(int type) { return type == 7 ? 4 : type == 1 ? 1 : 0; }

int ncclReduceScatter(const void* from, void* to, size_t count, int type, int op, struct comm* comm, struct stream* s) {
    if (type != 7 || op != 0) return INVALID;
    return add(comm, (struct call){REDUCE_SCATTER, 0, from, to, count * 4, s});
}
int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, struct comm* comm, struct stream* s) {
    if (type != 7 || op != 0) return INVALID;
    return add(comm, (struct call){ALL_REDUCE, 0, from, to, count * 4, s});
}
int ncclAllGather(const void* from, void* to, size_t count, int type, struct comm* comm, struct stream* s) {
    return add(comm, (struct call){ALL_GATHER, 0, from, to, count * width(type), s});
}
int ncclBroadcast(const void* from, void* to, size_t count, int type, int root, struct comm* comm, struct stream* s) {
    return add(comm, (struct call){BROADCAST, root, from, to, count * width(type), s});
}
int ncclSend(const void* from, size_t count, int type, int peer, struct comm* comm, struct stream* s) {
    return add(comm, (struct call){SEND, peer, from, NULL, count * width(type), s});
}
int ncclRecv(void* to, size_t count, int type, int peer, struct comm* comm, struct stream* s) {
    return add(comm, (struct call){RECEIVE, peer, NULL, to, count * width(type), s});
}
int ncclGroupStart(void) { return grouping = 1, OK; }
int ncclGroupEnd(void) {
    grouping = 0;
    if (!grouped) return OK;
    pthread_mutex_lock(&lock);
    arrive(grouped->group);
    pthread_mutex_unlock(&lock);
    grouped = NULL;
    return IN_PROGRESS;
}
