/* Closed-loop load on an HTTP server: load ADDRESS CONNECTIONS SECONDS REQUEST_FILE
 *
 * ADDRESS is a port on 127.0.0.1, or the path of a Unix socket. Each connection sends the file's bytes, reads a whole
 * answer by its Content-Length, and sends again. Prints one JSON object: answers a second, and percentiles of the time
 * from a request's first byte to its answer's last, in microseconds. An answer that is not 200 ends it with status 1.
 * Called by the benchmarks; in C so that the load takes little of the cores that the server shares with it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1024, ROOM = 1 << 20, TIMES = 1 << 22 };

typedef struct {
    int fd;
    size_t sent, got;
    int64_t began;
    char *in;
} Client;

static char *request;
static size_t request_size;
static float *times;
static size_t answers;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_to(const char *address) {
    int fd;
    if (*address == '/') {
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        snprintf(un.sun_path, sizeof un.sun_path, "%s", address);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&un, sizeof un) < 0) die(address);
    } else {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(atoi(address))};
        inet_pton(AF_INET, "127.0.0.1", &in.sin_addr);
        fd = socket(AF_INET, SOCK_STREAM, 0);
        int on = 1;
        if (connect(fd, (struct sockaddr *)&in, sizeof in) < 0) die(address);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    return fd;
}

static void send_some(Client *c) {
    while (c->sent < request_size) {
        ssize_t n = send(c->fd, request + c->sent, request_size - c->sent, MSG_NOSIGNAL);
        if (n < 0) die("send");
        c->sent += n;
    }
}

static void begin(Client *c) {
    c->sent = c->got = 0;
    c->began = now_ns();
    send_some(c);
}

/* Whether the answer is whole. */
static int whole(Client *c) {
    c->in[c->got] = 0;
    char *end = memmem(c->in, c->got, "\r\n\r\n", 4);
    if (!end) return 0;
    char *length = strcasestr(c->in, "content-length:");
    while (length && length > c->in && length[-1] != '\n') length = strcasestr(length + 1, "content-length:");
    if (!length || length > end) die("an answer without Content-Length");
    return c->got >= (size_t)(end + 4 - c->in) + strtoul(length + 15, NULL, 10);
}

static void read_some(Client *c) {
    ssize_t n = recv(c->fd, c->in + c->got, ROOM - 1 - c->got, 0);
    if (n <= 0) die("recv");
    c->got += n;
    if (!whole(c)) return;
    if (memcmp(c->in, "HTTP/1.1 200", 12)) {
        fprintf(stderr, "load: %.*s\n", (int)(c->got > 400 ? 400 : c->got), c->in);
        exit(1);
    }
    if (answers < TIMES) times[answers] = (now_ns() - c->began) / 1000.0f;
    answers++;
    begin(c);
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 5) die("usage: load ADDRESS CONNECTIONS SECONDS REQUEST_FILE");
    int count = atoi(argv[2]);
    if (count < 1 || count > MOST) die("connections: expected 1 to 1024");
    FILE *file = fopen(argv[4], "rb");
    if (!file) die(argv[4]);
    request = malloc(ROOM);
    request_size = fread(request, 1, ROOM, file);
    times = malloc(TIMES * sizeof *times);
    Client *clients = calloc(count, sizeof *clients);
    int poll = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        clients[i].fd = open_to(argv[1]);
        clients[i].in = malloc(ROOM);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, clients[i].fd, &event);
    }
    int64_t started = now_ns(), until = started + (int64_t)(atof(argv[3]) * 1e9);
    for (int i = 0; i < count; i++) begin(&clients[i]);
    struct epoll_event events[64];
    while (now_ns() < until) {
        int n = epoll_wait(poll, events, 64, 1000);
        if (n < 0) die("epoll_wait");
        if (n == 0) die("no answer within a second");
        for (int i = 0; i < n; i++) read_some(events[i].data.ptr);
    }
    double seconds = (now_ns() - started) / 1e9;
    size_t kept = answers < TIMES ? answers : TIMES;
    qsort(times, kept, sizeof *times, by_size);
    printf("{\"answers\": %zu, \"per_s\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n", answers, answers / seconds,
           kept ? times[kept / 2] : 0.0, kept ? times[kept * 99 / 100] : 0.0);
    return 0;
}
