// A wire between two network namespaces: two TUN devices, and between them a rate, a delay, jitter, loss and a queue
// with a bound, each way. The kernel's own TCP runs over it; `tc netem` is not in every kernel, TUN is in most.
//
// Compiled and run by benchmarks/wire/__init__.py, which speaks with it in lines:
//   wire RATE DELAY JITTER LOSS QUEUE SEED   rate in bit/s (0: none), delay and jitter in us one way, loss in packets
//                                            per million, queue in bytes; prints "ready NEAR FAR", two descriptors of
//                                            this process that name the namespaces (/proc/PID/fd/NEAR)
//   set RATE DELAY JITTER LOSS QUEUE         from the next packet on          -> "ok"
//   down | up                                every packet is thrown away      -> "ok"
//   count                                    -> for each way: packets and bytes carried, lost, dropped by the queue
// It ends with its standard input, and the namespaces end with it and with the last process inside: nothing is left
// behind, however its parent died.
//
// Each way is a link as a router would see it: a packet that comes is lost at random, or dropped when the bytes that
// wait already fill the queue (drop-tail), leaves after those before it at the rate, and arrives a delay later. Jitter
// is uniform in +-JITTER and never changes the order. Bytes are those of IP packets.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <arpa/inet.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MTU = 1500, SLOTS = 65536, BURST = 64, TUN_QUEUE = 10000, LINE = 256 };

typedef struct {
    int64_t left, due;  // ns: when its last bit has left the queue, and when it arrives
    uint16_t size;
    uint8_t bytes[MTU];
} packet;

typedef struct {
    int in, out;
    packet *slots;         // a ring: what waits or is on its way, in order
    uint32_t first, sent, end;  // [first, sent) has left the queue, [sent, end) waits in it
    int64_t waiting;       // bytes of [sent, end)
    int64_t free_at, last_due;
    uint64_t packets, carried, lost, dropped;
} way;

static struct {
    int64_t rate, delay, jitter, loss, queue;
    int down;
} shape;

static uint64_t dice;

static uint64_t draw(void) {  // xorshift64: the same seed, the same losses
    dice ^= dice << 13;
    dice ^= dice >> 7;
    dice ^= dice << 17;
    return dice;
}

static void fail(const char *what) {
    fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void up(int control, const char *name) {
    struct ifreq request = {0};
    strcpy(request.ifr_name, name);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(control, SIOCSIFFLAGS, &request)) fail("SIOCSIFFLAGS");
}

static void address(int control, unsigned long request, const char *text) {
    struct ifreq change = {0};
    struct sockaddr_in *at = (struct sockaddr_in *)&change.ifr_addr;
    strcpy(change.ifr_name, "wire");
    at->sin_family = AF_INET;
    inet_pton(AF_INET, text, &at->sin_addr);
    if (ioctl(control, request, &change)) fail(text);
}

// Moves this process into a new namespace with an end of the wire in it; the descriptor of the end.
static int end_of_wire(const char *own, const char *other, int *space) {
    if (unshare(CLONE_NEWNET)) fail("unshare (root is needed)");
    *space = open("/proc/self/ns/net", O_RDONLY);
    int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    int control = socket(AF_INET, SOCK_DGRAM, 0);
    if (*space < 0 || tun < 0 || control < 0) fail("/dev/net/tun");
    struct ifreq request = {0};
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    strcpy(request.ifr_name, "wire");
    if (ioctl(tun, TUNSETIFF, &request)) fail("TUNSETIFF");
    request.ifr_qlen = TUN_QUEUE;  // the queue is ours: the device must not drop before it
    if (ioctl(control, SIOCSIFTXQLEN, &request)) fail("SIOCSIFTXQLEN");
    address(control, SIOCSIFADDR, own);
    address(control, SIOCSIFDSTADDR, other);
    up(control, "lo");
    up(control, "wire");
    close(control);
    return tun;
}

// Packets whose last bit has left the queue by `moment` wait no more.
static void leave(way *w, int64_t moment) {
    while (w->sent != w->end && w->slots[w->sent % SLOTS].left <= moment) {
        w->waiting -= w->slots[w->sent % SLOTS].size;
        w->sent++;
    }
}

static void take(way *w, const uint8_t *bytes, int size) {
    int64_t moment = now();
    leave(w, moment);
    if (shape.down || (shape.loss && (int64_t)(draw() % 1000000) < shape.loss)) {
        w->lost++;
        return;
    }
    if ((shape.rate && w->waiting + size > shape.queue) || w->end - w->first == SLOTS) {
        w->dropped++;
        return;
    }
    packet *p = &w->slots[w->end % SLOTS];
    int64_t start = w->free_at > moment ? w->free_at : moment;
    p->left = shape.rate ? start + size * 8000000000LL / shape.rate : moment;
    int64_t wobble = shape.jitter ? (int64_t)(draw() % (2 * shape.jitter + 1)) - shape.jitter : 0;
    p->due = p->left + shape.delay + wobble;
    if (p->due < w->last_due) p->due = w->last_due;
    memcpy(p->bytes, bytes, size);
    p->size = size;
    w->free_at = p->left;
    w->last_due = p->due;
    w->waiting += size;
    w->end++;
}

static void receive(way *w) {
    uint8_t bytes[MTU];
    for (int count = 0; count < BURST; count++) {
        ssize_t size = read(w->in, bytes, sizeof bytes);
        if (size <= 0) return;
        if (bytes[0] >> 4 == 4) take(w, bytes, size);  // IPv6 has no address here: its discovery is not traffic
    }
}

static void deliver(way *w) {
    int64_t moment = now();
    leave(w, moment);
    while (w->first != w->end && w->slots[w->first % SLOTS].due <= moment) {
        packet *p = &w->slots[w->first++ % SLOTS];
        if (shape.down) {  // a cut wire loses also what was on it
            w->lost++;
            continue;
        }
        if (write(w->out, p->bytes, p->size) < 0) {
            w->dropped++;
            continue;
        }
        w->packets++;
        w->carried += p->size;
    }
}

static void wake_at(int timer, const way *ways) {
    int64_t next = 0;
    for (int i = 0; i < 2; i++)
        if (ways[i].first != ways[i].end) {
            int64_t due = ways[i].slots[ways[i].first % SLOTS].due;
            if (!next || due < next) next = due;
        }
    struct itimerspec when = {.it_value = {next / 1000000000LL, next % 1000000000LL}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static int reshape(char *const *word) {
    int64_t *to[] = {&shape.rate, &shape.delay, &shape.jitter, &shape.loss, &shape.queue};
    for (int i = 0; i < 5; i++) {
        if (!word[i]) return 0;
        *to[i] = strtoll(word[i], NULL, 10);
        if (*to[i] < 0) return 0;
    }
    shape.delay *= 1000;
    shape.jitter *= 1000;
    return 1;
}

static void obey(char *line, const way *ways) {
    char *word[7] = {0};
    int count = 0;
    for (char *at = strtok(line, " \n"); at && count < 6; at = strtok(NULL, " \n")) word[count++] = at;
    if (!count) return;
    if (!strcmp(word[0], "count")) {
        for (int i = 0; i < 2; i++)
            printf("%llu %llu %llu %llu%c", (unsigned long long)ways[i].packets, (unsigned long long)ways[i].carried,
                   (unsigned long long)ways[i].lost, (unsigned long long)ways[i].dropped, i ? '\n' : ' ');
        return;
    }
    int known = 1;
    if (!strcmp(word[0], "down")) shape.down = 1;
    else if (!strcmp(word[0], "up")) shape.down = 0;
    else if (!strcmp(word[0], "set")) known = reshape(word + 1);
    else known = 0;
    puts(known ? "ok" : "what?");
}

static void hear(const way *ways) {
    static char line[LINE];
    static int length;
    char got[LINE];
    ssize_t size = read(STDIN_FILENO, got, sizeof got);
    if (size <= 0) exit(0);
    for (ssize_t i = 0; i < size; i++) {
        line[length++] = got[i];
        if (got[i] == '\n' || length == LINE - 1) {
            line[length] = 0;
            length = 0;
            obey(line, ways);
        }
    }
    fflush(stdout);
}

int main(int count, char **arguments) {
    if (count != 7 || !reshape(arguments + 1)) {
        fputs("usage: wire RATE DELAY JITTER LOSS QUEUE SEED\n", stderr);
        return 2;
    }
    // A link does not wait for a busy machine; where this is not allowed it is only less exact.
    sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
    dice = strtoull(arguments[6], NULL, 10) * 2654435761u + 1;
    int near, far;
    int a = end_of_wire("10.77.0.1", "10.77.0.2", &near);
    int b = end_of_wire("10.77.0.2", "10.77.0.1", &far);
    way ways[2] = {{.in = a, .out = b}, {.in = b, .out = a}};
    int poll = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int from[] = {a, b, timer, STDIN_FILENO};
    for (int i = 0; i < 4; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, from[i], &event)) fail("epoll");
    }
    for (int i = 0; i < 2; i++)
        if (!(ways[i].slots = calloc(SLOTS, sizeof(packet)))) fail("memory");
    printf("ready %d %d\n", near, far);
    fflush(stdout);
    for (;;) {
        struct epoll_event events[4];
        uint64_t ticks;
        int ready = epoll_wait(poll, events, 4, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.u32 < 2) receive(&ways[events[i].data.u32]);
            else if (events[i].data.u32 == 2) (void)!read(timer, &ticks, sizeof ticks);
            else hear(ways);
        }
        deliver(&ways[0]);
        deliver(&ways[1]);
        wake_at(timer, ways);
    }
}
