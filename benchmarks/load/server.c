/* A scripted streaming server: one thread, one core, vLLM's shapes, and a log of every write.

   server TTFT_US TPOT_US LOG

   Prints its port. A POST to /v1/completions is answered by `max_tokens` server-sent events, the
   first TTFT_US after the request had come, the others TPOT_US apart. Each event carries the
   nanoseconds of CLOCK_MONOTONIC at its write ("written_ns"). On SIGTERM it writes the log: a line
   per request, in order of arrival, with the "user" of its body (or -1), the nanoseconds at which
   it had come, and those of each write. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ = 1 << 16, PENDING = 1 << 20, EVENTS = 256, SLOTS = 4096 };

struct request {
    long user;
    int64_t came;
    int tokens, written, fd, is_streamed;
    unsigned generation; /* of the connection: a new one may have the same number */
    int64_t *writes;
};

struct connection {
    unsigned generation;
    int is_open;
    size_t got, pending;
    char *in, *out;
};

struct due {
    int64_t at;
    size_t request;
};

static struct connection connections[SLOTS];
static struct request *requests;
static size_t request_count, request_room;
static struct due *heap;
static size_t heap_count, heap_room;
static int64_t ttft_ns, tpot_ns;
static int poll_fd;
static volatile sig_atomic_t stopped;

static void stop(int number) { (void)number; stopped = 1; }

static void die(const char *what) { perror(what); exit(1); }

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *grown(void *items, size_t count, size_t *room, size_t size)
{
    if (count < *room)
        return items;
    *room = *room ? *room * 2 : 1024;
    if (!(items = realloc(items, *room * size)))
        die("realloc");
    return items;
}

/* What is due: a binary heap, the earliest first. */

static void push(int64_t at, size_t request)
{
    heap = grown(heap, heap_count, &heap_room, sizeof *heap);
    size_t i = heap_count++;
    for (; i && heap[(i - 1) / 2].at > at; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = (struct due){at, request};
}

static struct due pop(void)
{
    struct due first = heap[0], last = heap[--heap_count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < heap_count; i = child) {
        if (child + 1 < heap_count && heap[child + 1].at < heap[child].at)
            child++;
        if (heap[child].at >= last.at)
            break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return first;
}

/* Connections. */

static void watch(int fd, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poll_fd, operation, fd, &event))
        die("epoll_ctl");
}

static void opened(int fd)
{
    if (fd >= SLOTS) {
        close(fd);
        return;
    }
    struct connection *c = &connections[fd];
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->generation++;
    c->is_open = 1;
    c->got = c->pending = 0;
    if (!c->in && !((c->in = malloc(READ + 1)) && (c->out = malloc(PENDING))))
        die("malloc");
    watch(fd, EPOLLIN, EPOLL_CTL_ADD);
}

static void closed(int fd)
{
    connections[fd].is_open = 0;
    close(fd);
}

static void flush(int fd)
{
    struct connection *c = &connections[fd];
    ssize_t sent = send(fd, c->out, c->pending, MSG_NOSIGNAL);
    if (sent < 0)
        return;
    memmove(c->out, c->out + sent, c->pending -= sent);
    if (!c->pending)
        watch(fd, EPOLLIN, EPOLL_CTL_MOD);
}

static void put(int fd, const char *data, size_t size)
{
    struct connection *c = &connections[fd];
    ssize_t sent = c->pending ? 0 : send(fd, data, size, MSG_NOSIGNAL);
    if (sent < 0)
        sent = 0;
    size_t rest = size - sent;
    if (!rest)
        return;
    if (c->pending + rest > PENDING) {
        closed(fd);
        return;
    }
    memcpy(c->out + c->pending, data + sent, rest);
    c->pending += rest;
    watch(fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
}

/* Answers. */

static void put_json(int fd, const char *status, const char *json)
{
    char text[1024];
    int size = snprintf(text, sizeof text,
                        "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                        status, strlen(json), json);
    put(fd, text, size);
}

static int format_event(char *text, size_t room, const struct request *r, int64_t at)
{
    int count = r->written + 1;
    return snprintf(text, room,
                    "data: {\"id\":\"cmpl-%ld\",\"object\":\"text_completion\",\"created\":1,"
                    "\"model\":\"tiny-llama\",\"choices\":[{\"index\":0,\"text\":\" a\","
                    "\"logprobs\":null,\"finish_reason\":%s,\"stop_reason\":null,"
                    "\"token_ids\":[65]}],\"usage\":{\"prompt_tokens\":16,\"total_tokens\":%d,"
                    "\"completion_tokens\":%d},\"written_ns\":%lld}\n\n",
                    r->user, count == r->tokens ? "\"length\"" : "null", 16 + count, count,
                    (long long)at);
}

/* The next event of a request; the last comes with the usage and the end of the stream. */
static void write_event(size_t number)
{
    struct request *r = &requests[number];
    struct connection *c = &connections[r->fd];
    if (!c->is_open || c->generation != r->generation)
        return;
    char event[1024], text[2048];
    int64_t at = now();
    int size = format_event(event, sizeof event, r, at);
    int length = snprintf(text, sizeof text, "%x\r\n%s\r\n", size, event);
    r->writes[r->written++] = at;
    if (r->written == r->tokens) {
        char usage[256];
        int more = snprintf(usage, sizeof usage,
                            "data: {\"id\":\"cmpl-%ld\",\"choices\":[],\"usage\":{\"prompt_tokens\":16,"
                            "\"total_tokens\":%d,\"completion_tokens\":%d}}\n\n",
                            r->user, 16 + r->tokens, r->tokens);
        length += snprintf(text + length, sizeof text - length,
                           "%x\r\n%s\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", more, usage);
    } else {
        /* By schedule, not by the last write: being late once delays nothing else. */
        push(r->came + ttft_ns + r->written * tpot_ns, number);
    }
    put(r->fd, text, length);
}

static long number_after(const char *body, const char *key, long otherwise)
{
    const char *found = strstr(body, key);
    if (!found)
        return otherwise;
    found += strlen(key);
    found += strspn(found, " :\"");
    return *found >= '0' && *found <= '9' ? strtol(found, NULL, 10) : otherwise;
}

static void complete(int fd, const char *body, int64_t came)
{
    requests = grown(requests, request_count, &request_room, sizeof *requests);
    struct request *r = &requests[request_count];
    const char *stream = strstr(body, "\"stream\"");
    long tokens = number_after(body, "\"max_tokens\"",
                               number_after(body, "\"max_completion_tokens\"", 16));
    *r = (struct request){.user = number_after(body, "\"user\"", -1), .came = came, .fd = fd,
                          .tokens = tokens, .generation = connections[fd].generation};
    if (!stream || !memchr(stream, 't', 12) || !strstr(stream, "true")) {
        put_json(fd, "200 OK",
                 "{\"id\":\"cmpl-0\",\"object\":\"text_completion\",\"created\":1,"
                 "\"model\":\"tiny-llama\",\"choices\":[{\"index\":0,\"text\":\" a\","
                 "\"logprobs\":null,\"finish_reason\":\"length\"}],"
                 "\"usage\":{\"prompt_tokens\":16,\"total_tokens\":17,\"completion_tokens\":1}}");
        return;
    }
    if (!(r->writes = calloc(tokens, sizeof *r->writes)))
        die("calloc");
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                               "Transfer-Encoding: chunked\r\n\r\n";
    put(fd, head, sizeof head - 1);
    push(came + ttft_ns, request_count++);
}

static void handle(int fd, const char *head, const char *body, int64_t came)
{
    if (!strncmp(head, "POST /v1/completions ", 21))
        complete(fd, body, came);
    else if (!strncmp(head, "GET /v1/models ", 15))
        put_json(fd, "200 OK",
                 "{\"object\":\"list\",\"data\":[{\"id\":\"tiny-llama\",\"object\":\"model\"}]}");
    else if (!strncmp(head, "GET /health ", 12))
        put_json(fd, "200 OK", "{}");
    else
        put_json(fd, "404 Not Found", "{}");
}

/* Reads what there is, and handles the requests that are whole. */
static void readable(int fd)
{
    struct connection *c = &connections[fd];
    ssize_t size = recv(fd, c->in + c->got, READ - c->got, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0) {
        closed(fd);
        return;
    }
    int64_t came = now();
    c->in[c->got += size] = 0;
    for (char *end; c->is_open && (end = strstr(c->in, "\r\n\r\n"));) {
        char *body = end + 4, *field = strcasestr(c->in, "\r\ncontent-length:");
        size_t length = field && field < end ? strtoul(field + 17, NULL, 10) : 0;
        size_t whole = body - c->in + length;
        if (whole > c->got) {
            if (whole > READ)
                closed(fd);
            return;
        }
        char next = body[length];
        body[length] = 0;
        handle(fd, c->in, body, came);
        body[length] = next;
        memmove(c->in, c->in + whole, c->got + 1 - whole);
        c->got -= whole;
    }
}

static int listening(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096) ||
        getsockname(fd, (struct sockaddr *)&address, &size))
        die("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void serve(int listener)
{
    struct epoll_event events[EVENTS];
    while (!stopped) {
        /* Not all that is due: new requests must not wait for a backlog of old ones. */
        for (int i = 0; i < EVENTS && heap_count && heap[0].at <= now(); i++)
            write_event(pop().request);
        int64_t left = heap_count ? heap[0].at - now() : 100000000;
        struct timespec wait = {.tv_nsec = left < 0 ? 0 : left < 100000000 ? left : 100000000};
        int count = epoll_pwait2(poll_fd, events, EVENTS, &wait, NULL);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                for (int new; (new = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;)
                    opened(new);
                continue;
            }
            if (events[i].events & EPOLLOUT)
                flush(fd);
            if (connections[fd].is_open && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                readable(fd);
        }
    }
}

static void write_log(const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        die(path);
    for (size_t i = 0; i < request_count; i++) {
        struct request *r = &requests[i];
        fprintf(file, "%ld %lld", r->user, (long long)r->came);
        for (int j = 0; j < r->written; j++)
            fprintf(file, " %lld", (long long)r->writes[j]);
        fputc('\n', file);
    }
    if (fclose(file))
        die(path);
}

int main(int count, char **arguments)
{
    if (count != 4) {
        fprintf(stderr, "usage: server TTFT_US TPOT_US LOG\n");
        return 2;
    }
    ttft_ns = atoll(arguments[1]) * 1000;
    tpot_ns = atoll(arguments[2]) * 1000;
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    int listener = listening();
    if ((poll_fd = epoll_create1(0)) < 0)
        die("epoll_create1");
    watch(listener, EPOLLIN, EPOLL_CTL_ADD);
    serve(listener);
    write_log(arguments[3]);
    return 0;
}
