/* A chat-completions endpoint that costs next to nothing: one thread, epoll, bodies thrown away.
 *
 *   gcc -O2 -o sink sink.c && ./sink LATENCY_MS
 *
 * It prints the port it took, answers every POST with the same caption LATENCY_MS after the last
 * byte of its body, GET /stats with what it has seen, and ends when standard input does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 16384, HEAD = 16384 };

struct client {
    char head[HEAD];      /* the request's head, as far as it has come */
    int filled;           /* bytes of it */
    long long body_left;  /* bytes of the body that are still to come; -1: still in the head */
    int is_post;
    unsigned serial;      /* tells connections apart that had the same descriptor */
};
struct due { int fd; unsigned serial; double when; };

static struct client *clients[MOST];
static struct due queue[MOST * 2];  /* all wait equally long, so that it stays in order */
static unsigned head_at, tail_at, serials;
static long answered, waiting, most_waiting;
static int loop;
static double latency;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void drop(int fd) {
    if (clients[fd]) clients[fd]->serial = ++serials;
    close(fd);
}

static void say(int fd, const char *type, const char *body) {
    char out[2048];
    int size = snprintf(out, sizeof out,
                        "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n%s", type,
                        strlen(body), body);
    for (int done = 0; done < size;) {
        ssize_t sent = send(fd, out + done, size - done, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) { usleep(50); continue; }
        if (sent < 0) return;
        done += sent;
    }
}

static void caption(int fd) {
    answered++;
    say(fd, "application/json",
        "{\"id\":\"c\",\"object\":\"chat.completion\",\"model\":\"m\",\"choices\":[{\"index\":0,"
        "\"finish_reason\":\"stop\",\"message\":{\"role\":\"assistant\",\"content\":\"A photograph of a "
        "quiet street in the late afternoon, with long shadows, a parked bicycle, and two people who "
        "talk in front of a green door.\"}}],\"usage\":{\"prompt_tokens\":812,\"completion_tokens\":31,"
        "\"total_tokens\":843}}");
}

static void finished(int fd, struct client *c) {
    c->body_left = -1;
    if (!c->is_post) {
        char stats[192];
        struct rusage used;
        getrusage(RUSAGE_SELF, &used);
        double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec +
                     (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
        snprintf(stats, sizeof stats,
                 "{\"answered\":%ld,\"most_waiting\":%ld,\"cpu_s\":%.3f,\"data\":[{\"id\":\"m\"}]}",
                 answered, most_waiting, cpu);
        if (strstr(c->head, "/stats")) answered = most_waiting = 0;
        say(fd, "application/json", stats);
        return;
    }
    if (++waiting > most_waiting) most_waiting = waiting;
    if (latency > 0) {
        queue[tail_at++ % (MOST * 2)] = (struct due){fd, c->serial, now() + latency};
        return;
    }
    waiting--;
    caption(fd);
}

static void readable(int fd) {
    struct client *c = clients[fd];
    for (;;) {
        if (c->body_left > 0) {
            /* MSG_TRUNC has the kernel throw the bytes away without copying them. */
            ssize_t got = recv(fd, NULL, c->body_left > 1 << 20 ? 1 << 20 : c->body_left, MSG_TRUNC);
            if (got < 0 && errno == EAGAIN) return;
            if (got <= 0) { drop(fd); return; }
            c->body_left -= got;
            if (c->body_left == 0) { c->filled = 0; finished(fd, c); }
            continue;
        }
        ssize_t got = recv(fd, c->head + c->filled, HEAD - 1 - c->filled, MSG_PEEK);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) { drop(fd); return; }
        c->head[c->filled + got] = 0;
        char *end = strstr(c->head, "\r\n\r\n");
        int use = end ? (int)(end + 4 - c->head) - c->filled : (int)got;
        recv(fd, c->head + c->filled, use, 0);
        c->filled += use;
        if (!end) {
            if (c->filled >= HEAD - 1) { drop(fd); return; }
            continue;
        }
        c->head[c->filled] = 0;
        c->is_post = !strncmp(c->head, "POST", 4);
        char *length = strcasestr(c->head, "\r\ncontent-length:");
        c->body_left = length ? atoll(length + 17) : 0;
        if (strcasestr(c->head, "expect: 100")) send(fd, "HTTP/1.1 100 Continue\r\n\r\n", 25, 0);
        if (c->body_left == 0) { c->filled = 0; finished(fd, c); }
    }
}

int main(int argc, char **argv) {
    latency = argc > 1 ? atof(argv[1]) / 1000 : 0;
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listening, (void *)&at, sizeof at) || listen(listening, 4096)) { perror("sink"); return 1; }
    getsockname(listening, (void *)&at, &size);
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    loop = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening}, events[512];
    epoll_ctl(loop, EPOLL_CTL_ADD, listening, &event);
    event.data.fd = 0;
    int watched = !epoll_ctl(loop, EPOLL_CTL_ADD, 0, &event);
    for (;;) {
        int wait = -1;
        if (head_at != tail_at) {
            double left = queue[head_at % (MOST * 2)].when - now();
            wait = left > 0 ? (int)(left * 1000) : 0;
        }
        int count = epoll_wait(loop, events, 512, wait);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == 0 && watched) {
                char scrap[64];
                if (read(0, scrap, sizeof scrap) <= 0) return 0;
            } else if (fd == listening) {
                int made;
                while ((made = accept4(listening, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (made >= MOST) { close(made); continue; }
                    if (!clients[made]) clients[made] = calloc(1, sizeof(struct client));
                    clients[made]->filled = 0;
                    clients[made]->body_left = -1;
                    clients[made]->serial = ++serials;
                    setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    event.events = EPOLLIN;
                    event.data.fd = made;
                    epoll_ctl(loop, EPOLL_CTL_ADD, made, &event);
                }
            } else {
                readable(fd);
            }
        }
        double time = now();
        while (head_at != tail_at && queue[head_at % (MOST * 2)].when <= time) {
            struct due due = queue[head_at++ % (MOST * 2)];
            waiting--;
            if (clients[due.fd]->serial == due.serial) caption(due.fd);
        }
    }
}
