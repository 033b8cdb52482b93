/* The backend of the benchmark: serves the modes of common.h on a Unix socket, and on a TCP port of
 * 127.0.0.1 as well for proxies that reach no other.
 * usage: backend PATH PORT
 */
#define _GNU_SOURCE
#include "common.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/resource.h>

#define FIRST 8192
#define CHUNKS_A_TURN 4
#define PROCESSES 256

struct peer {
    struct peer *next;
    int fd;
    int started;
    int awaits_room;
    int queued;
    size_t have;
    struct command command;
    uint64_t done;
    unsigned char first[FIRST];
};

static int poller;
static struct peer *unfinished;
static struct {
    int process;
    uint64_t connections;
} counted[PROCESSES];

static void finish(struct peer *peer)
{
    close(peer->fd);
    free(peer);
}

/* Count a connection for the process that made it. */
static void count(int fd)
{
    struct ucred made_by;
    socklen_t length = sizeof made_by;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &made_by, &length))
        return;
    for (int i = 0; i < PROCESSES; i++) {
        if (!counted[i].process)
            counted[i].process = made_by.pid;
        if (counted[i].process == made_by.pid) {
            counted[i].connections++;
            return;
        }
    }
}

/* Answer with a line "process connections" for each process, and begin to count anew. */
static void tell_counts(int fd)
{
    char text[PROCESSES * 40];
    int size = 0;
    for (int i = 0; i < PROCESSES && counted[i].process; i++)
        size += sprintf(text + size, "%d %llu\n", counted[i].process,
                        (unsigned long long)counted[i].connections);
    memset(counted, 0, sizeof counted);
    if (send(fd, text, size, MSG_NOSIGNAL) != size)
        die("send");
}

/* Read hello and command; say whether both are complete. What follows them is left in `first`. */
static int start(struct peer *peer)
{
    ssize_t n = recv(peer->fd, peer->first + peer->have, FIRST - peer->have, MSG_DONTWAIT);
    if (n <= 0)
        return n < 0 && errno == EAGAIN ? 0 : -1;
    peer->have += n;
    size_t want = 5 + (peer->first[3] << 8 | peer->first[4]) + sizeof(struct command);
    if (peer->have < 5 || peer->have < want)
        return peer->have == FIRST ? -1 : start(peer);
    memcpy(&peer->command, peer->first + want - sizeof(struct command), sizeof(struct command));
    peer->have -= want;
    memmove(peer->first, peer->first + want, peer->have);
    return 1;
}

/* Give what came behind the command first, then what comes. */
static ssize_t receive(struct peer *peer, unsigned char *buffer)
{
    if (peer->have) {
        size_t size = peer->have;
        memcpy(buffer, peer->first, size);
        peer->have = 0;
        return size;
    }
    return recv(peer->fd, buffer, CHUNK, MSG_DONTWAIT);
}

static void go_on_later(struct peer *peer)
{
    peer->queued = 1;
    peer->next = unfinished;
    unfinished = peer;
}

/* Send a few chunks of the reply; then the others have their turn. */
static void reply(struct peer *peer)
{
    for (int i = 0; i < CHUNKS_A_TURN; i++) {
        uint64_t step = peer->done + CHUNK;
        uint64_t end = peer->command.bytes < step ? peer->command.bytes : step;
        int sent = send_pattern(peer->fd, &peer->done, end, most_of(peer->command.mode));
        if (sent < 0 || peer->done == peer->command.bytes) {
            finish(peer);
            return;
        }
        if (!sent) {
            if (!peer->awaits_room) {
                struct epoll_event event = {.events = EPOLLOUT | EPOLLET, .data.ptr = peer};
                epoll_ctl(poller, EPOLL_CTL_MOD, peer->fd, &event);
                peer->awaits_room = 1;
            }
            return;
        }
    }
    go_on_later(peer);
}

static void serve(struct peer *peer)
{
    static unsigned char buffer[CHUNK];
    ssize_t n;
    if (!peer->started) {
        int begun = start(peer);
        if (begun < 0) {
            finish(peer);
            return;
        }
        if (!begun)
            return;
        peer->started = 1;
        if (peer->command.mode == IDLE && send(peer->fd, "k", 1, MSG_NOSIGNAL) != 1)
            die("send");
    }
    switch (peer->command.mode) {
    case REPLY:
    case REPLY_RECORDS:
        reply(peer);
        return;
    case COUNTS:
        tell_counts(peer->fd);
        finish(peer);
        return;
    case UPLOAD:
    case UPLOAD_RECORDS:
        for (int i = 0; (n = receive(peer, buffer)) > 0; i++) {
            if (!is_pattern(buffer, peer->done, n)) {
                fprintf(stderr, "backend: wrong bytes at %llu\n", (unsigned long long)peer->done);
                exit(1);
            }
            peer->done += n;
            if (peer->done == peer->command.bytes) {
                if (send(peer->fd, "k", 1, MSG_NOSIGNAL) != 1)
                    die("send");
                finish(peer);
                return;
            }
            if (i == CHUNKS_A_TURN) {
                go_on_later(peer);
                return;
            }
        }
        break;
    default:
        while ((n = receive(peer, buffer)) > 0)
            if (send(peer->fd, buffer, n, MSG_NOSIGNAL) != n)
                break;
    }
    if (n == 0 || (n < 0 && errno != EAGAIN))
        finish(peer);
}

static void welcome(int listening, int over_tcp)
{
    int yes = 1;
    int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0)
        return;
    if (over_tcp)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    else
        count(fd);
    struct peer *peer = malloc(sizeof *peer);
    memset(peer, 0, offsetof(struct peer, first));
    peer->fd = fd;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.ptr = peer};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void listen_on(int *fd, int family, const void *address, socklen_t size)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = fd};
    int yes = 1;
    *fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(*fd, address, size) || listen(*fd, 4096))
        die("bind");
    epoll_ctl(poller, EPOLL_CTL_ADD, *fd, &event);
}

int main(int argc, char **argv)
{
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    struct sockaddr_in port = {.sin_family = AF_INET};
    if (argc != 3 || strlen(argv[1]) >= sizeof path.sun_path)
        return fprintf(stderr, "usage: backend PATH PORT\n"), 2;
    strcpy(path.sun_path, argv[1]);
    unlink(argv[1]);
    port.sin_port = htons(atoi(argv[2]));
    port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    poller = epoll_create1(0);
    int local, tcp;
    listen_on(&tcp, AF_INET, &port, sizeof port);
    listen_on(&local, AF_UNIX, &path, sizeof path);
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(poller, events, 256, unfinished ? 0 : -1);
        struct peer *queue = unfinished;
        unfinished = NULL;
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr == &local || events[i].data.ptr == &tcp)
                welcome(*(int *)events[i].data.ptr, events[i].data.ptr == &tcp);
            else if (!((struct peer *)events[i].data.ptr)->queued)
                serve(events[i].data.ptr);
        }
        while (queue) {
            struct peer *peer = queue;
            queue = peer->next;
            peer->queued = 0;
            serve(peer);
        }
    }
}
