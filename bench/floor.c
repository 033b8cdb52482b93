/* The floor of the benchmark: the system calls that sniproxy makes, in the same order, and nothing
 * else. It does not look at the hello, looks up one fixed path, and drops
 * whatever goes wrong; so what it costs is what the kernel costs, the honest limit of every
 * program that does the same work by the same calls. bench/calls.py shows that they are the same.
 * usage: floor DIRECTORY < LISTENING-SOCKET, in the hosts directory
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    BUFFER = 256 * 1024, /* these are the limits of sniproxy/dataplane/relay.py and listener.py */
    BULK = 64 * 1024,
    CHUNKS_A_TURN = 8,
    SPLICES_A_TURN = 4,
    PIPE = 1024 * 1024,
    LARGEST_BATCH = 64,
    EVENTS = 256,
};

/* One end of a connection, and the direction that leads away from it. */
struct end {
    struct end *peer, *next, *next_dead;
    char *unsent;           /* what the peer did not take, `size` bytes from `from` on */
    uint32_t from, size;
    int fd;
    int piped;              /* bytes of this direction in the pipe */
    int pipe[2];
    unsigned char client, watched, begun, paused, ended, over, queued, bulk;
};

static int poller;
static char *buffer;
static struct sockaddr_un backend = {.sun_family = AF_UNIX};
static char v1[200], v2[200];
static struct end *unfinished, *dead;
static int idle_pipe[2] = {-1, -1};
static int refuses;         /* does the kernel refuse descriptors that others would pass? */

static void begin(struct end *client);
static void pump(struct end *end, int to_the_end);

static void await(struct end *end, int operation, int write)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET | (write ? EPOLLOUT : 0),
                                .data.ptr = end};
    epoll_ctl(poller, operation, end->fd, &event);
}

static int refuse_descriptors(int fd)
{
    int no = 0, so_passrights = 83;
    return setsockopt(fd, SOL_SOCKET, so_passrights, &no, sizeof no) == 0;
}

static void again(struct end *end)
{
    if (!end->queued) {
        end->queued = 1;
        end->next = unfinished;
        unfinished = end;
    }
}

static void over(struct end *end)
{
    struct end *client = end->client ? end : end->peer;
    struct end *both[2] = {client->peer, client};
    for (int i = 0; i < 2; i++) {
        both[i]->over = both[i]->paused = 1;
        close(both[i]->fd);
        free(both[i]->unsent);
        both[i]->unsent = NULL;
        if (both[i]->piped) {
            close(both[i]->pipe[0]);
            close(both[i]->pipe[1]);
        }
    }
    /* Events of this turn may still name them. */
    client->next_dead = dead;
    dead = client;
}

static void finish(struct end *end)
{
    end->paused = end->ended = 1;
    if (end->peer->ended)
        over(end);
    else
        shutdown(end->peer->fd, SHUT_WR);
}

/* Move what the pipe holds; say whether it is empty. */
static int drain(struct end *end)
{
    while (end->piped) {
        ssize_t n = splice(end->pipe[0], NULL, end->peer->fd, NULL, end->piped,
                           SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (n < 0) {
            if (errno != EAGAIN)
                over(end);
            else if (!end->paused) {
                end->paused = 1;
                await(end->peer, EPOLL_CTL_MOD, 1);
            }
            return 0;
        }
        end->piped -= n;
    }
    return 1;
}

static void give_back(struct end *end)
{
    if (idle_pipe[0] >= 0) {
        close(end->pipe[0]);
        close(end->pipe[1]);
        return;
    }
    memcpy(idle_pipe, end->pipe, sizeof idle_pipe);
}

static void splice_up(struct end *end, int to_the_end)
{
    if (idle_pipe[0] >= 0) {
        memcpy(end->pipe, idle_pipe, sizeof idle_pipe);
        idle_pipe[0] = -1;
    } else if (pipe2(end->pipe, O_CLOEXEC | O_NONBLOCK)) {
        end->bulk = 0;
        pump(end, to_the_end);
        return;
    } else {
        fcntl(end->pipe[1], F_SETPIPE_SZ, PIPE);
    }
    int on = fcntl(end->fd, F_GETFL);
    if (!(on & O_NONBLOCK))
        fcntl(end->fd, F_SETFL, on | O_NONBLOCK);
    for (int i = 0; i < SPLICES_A_TURN; i++) {
        ssize_t n = splice(end->fd, NULL, end->pipe[1], NULL, PIPE,
                           SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (n <= 0) {
            int error = errno;
            give_back(end);
            if (n == 0)
                finish(end);
            else if (error != EAGAIN)
                over(end);
            return;
        }
        end->piped = n;
        if (!drain(end))
            return;
        if (n < BULK) {
            end->bulk = 0;
            break;
        }
    }
    give_back(end);
    again(end);
}

/* Pass on what has arrived at an end, until nothing is left or its peer is full. */
static void pump(struct end *end, int to_the_end)
{
    if (end->bulk > 1) {
        splice_up(end, to_the_end);
        return;
    }
    for (int i = 0; i < CHUNKS_A_TURN; i++) {
        ssize_t n = recv(end->fd, buffer, BUFFER, MSG_DONTWAIT);
        if (n <= 0) {
            if (n == 0)
                finish(end);
            else if (errno != EAGAIN)
                over(end);
            return;
        }
        ssize_t sent = send(end->peer->fd, buffer, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            over(end);
            return;
        }
        sent = sent < 0 ? 0 : sent;
        if (sent < n) {
            end->size = n - sent;
            end->from = 0;
            end->unsent = malloc(end->size);
            memcpy(end->unsent, buffer + sent, end->size);
            end->paused = 1;
            await(end->peer, EPOLL_CTL_MOD, 1);
            return;
        }
        if (n < BULK) {
            end->bulk = 0;
            if (!to_the_end)
                return;
        } else {
            end->bulk += end->client && end->bulk < 2;
            if (n < BUFFER && !to_the_end)
                return;
            if (end->bulk > 1)
                break;
        }
    }
    again(end);
}

/* Give the peer more of what it had not taken; read on when it has taken all. */
static void flush(struct end *end)
{
    if (end->piped) {
        if (!drain(end))
            return;
        give_back(end);
    } else {
        ssize_t sent = send(end->peer->fd, end->unsent + end->from, end->size,
                            MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN)
                over(end);
            return;
        }
        end->from += sent;
        end->size -= sent;
        if (end->size)
            return;
        free(end->unsent);
        end->unsent = NULL;
    }
    await(end->peer, EPOLL_CTL_MOD, 0);
    end->paused = 0;
    pump(end, 1);
}

static void ready(struct end *end, uint32_t mask)
{
    if (end->over)
        return;
    if (!end->begun) {
        begin(end);
        return;
    }
    if (mask & EPOLLOUT && (end->peer->unsent || end->peer->piped)) {
        flush(end->peer);
        if (end->over)
            return;
    }
    if (!end->paused && mask & ~EPOLLOUT)
        pump(end, (mask & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
}

/* Connect an accepted client to the backend once its hello has come: usually at once. */
static void begin(struct end *client)
{
    ssize_t n = recv(client->fd, buffer, BUFFER, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) {
        if (!client->watched)
            await(client, EPOLL_CTL_ADD, 0);
        client->watched = 1;
        return;
    }
    struct end *peer = client->peer;
    peer->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (refuses)
        refuse_descriptors(peer->fd);
    if (n <= 0 || connect(peer->fd, (struct sockaddr *)&backend, sizeof backend)) {
        over(client);
        return;
    }
    if (access(v2, F_OK) == 0 || access(v1, F_OK) == 0)
        exit(1);
    if (send(peer->fd, buffer, n, MSG_NOSIGNAL) != n) {
        over(client);
        return;
    }
    client->begun = 1;
    if (!client->watched)
        await(client, EPOLL_CTL_ADD, 0);
    await(peer, EPOLL_CTL_ADD, 0);
    if (client->watched)
        pump(client, 1);
}

static int welcome(int listening)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    int fd = accept4(listening, (struct sockaddr *)&address, &length, SOCK_CLOEXEC);
    if (fd < 0)
        return 0;
    length = sizeof address;
    getsockname(fd, (struct sockaddr *)&address, &length);
    struct end *ends = calloc(2, sizeof *ends);
    ends[0].fd = fd;
    ends[0].client = 1;
    ends[0].peer = &ends[1];
    ends[1].fd = -1;
    ends[1].begun = 1;
    ends[1].peer = &ends[0];
    begin(&ends[0]);
    return 1;
}

/* Free what is over and no list names any more. */
static void bury(void)
{
    struct end *left = NULL;
    while (dead) {
        struct end *client = dead;
        dead = client->next_dead;
        if (client->queued || client->peer->queued) {
            client->next_dead = left;
            left = client;
        } else {
            free(client);
        }
    }
    dead = left;
}

int main(int argc, char **argv)
{
    if (argc != 2 || strlen(argv[1]) > 90)
        return fprintf(stderr, "usage: floor DIRECTORY < LISTENING-SOCKET\n"), 2;
    sprintf(backend.sun_path, "%s/tls-socket", argv[1]);
    sprintf(v1, "%s/send-proxy-v1", argv[1]);
    sprintf(v2, "%s/send-proxy-v2", argv[1]);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    int yes = 1;
    setsockopt(0, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
    setsockopt(0, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    refuses = refuse_descriptors(probe);
    close(probe);
    buffer = malloc(BUFFER);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event);
    unsigned turn = 0, last_turn = 0, batch = 1;
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(poller, events, EVENTS, unfinished ? 0 : -1);
        turn++;
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr) {
                ready(events[i].data.ptr, events[i].events);
                continue;
            }
            batch = turn != last_turn + 1 ? 1 : batch < LARGEST_BATCH ? 2 * batch : batch;
            last_turn = turn;
            ioctl(0, FIONBIO, &yes);
            for (unsigned k = 0; k < batch && welcome(0); k++)
                ;
        }
        struct end *queue = unfinished;
        unfinished = NULL;
        while (queue) {
            struct end *end = queue;
            queue = end->next;
            end->queued = 0;
            if (!end->over && !end->paused)
                pump(end, 1);
        }
        bury();
    }
}
