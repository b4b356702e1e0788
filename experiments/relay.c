/*
 * A link with delay, rate and loss where the kernel has no netem: two TUN devices, one in each of two network
 * namespaces, and this process between them. Each packet is lost with the probability asked for, waits at the
 * bottleneck for its turn, and arrives half a round trip after it has left that. Prints "ready" when both
 * devices are there, and runs until it is killed.
 *
 *     relay NETNS NETNS DEVICE rtt=NANOSECONDS rate=BYTES_PER_SECOND loss=SHARE queue=BYTES
 *
 * rate 0: no bottleneck. queue: how much waits there at most; what comes then is dropped, as a router drops
 * it.
 *
 * The devices carry the header of virtio_net (IFF_VNET_HDR) and announce segmentation offload, so that
 * packets of up to 64 KiB pass as one and the rate is limited by the copying alone. Where packets get lost
 * there is no such offload: each of the link's real packets is lost by itself, never 45 in a row.
 *
 * Timing: sleep until shortly before the next packet is due, then look at the clock until it is. The
 * real-time scheduler, where it is allowed, since this stands for a cable, which no process keeps waiting.
 */
#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>

enum {
    LARGEST = 65536 + 64, /* a packet with its header, as the device hands it over */
    HEADERS = 14,         /* of Ethernet, which a real link would carry and a TUN device does not */
    SPIN_NS = 150000,     /* what a timer and waking up cost on a virtual machine, 110 us in the middle */
    AT_ONCE = 16,         /* packets read from one side before the other has its turn */
    ENDLESS = 64 << 20,   /* bytes under way where no rate limits them */
    SLACK = 4 << 20       /* bytes, for packets under way beside the queue's */
};

struct packet {
    uint64_t due;
    uint32_t size, skip; /* skip: this is no packet, the ring goes on at its begin */
};

/* One direction. Packets lie in a ring in the order in which they are due. */
struct way {
    int from, to;
    char *ring;
    uint64_t capacity, head, tail; /* head: written so far, tail: read so far, bytes */
    uint64_t free_at;              /* when the bottleneck has sent everything that waits there */
    uint64_t dropped;
};

struct link {
    uint64_t delay, rate, queue, seed;
    double loss;
};

static int open_device(const char *netns, const char *name, int offload) {
    int space = open(netns, O_RDONLY | O_CLOEXEC), tun = -1, header = sizeof(struct virtio_net_hdr);
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (space < 0 || setns(space, CLONE_NEWNET))
        fail(netns);
    close(space);
    tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (tun < 0 || ioctl(tun, TUNSETIFF, &request))
        fail("/dev/net/tun");
    unsigned features = offload ? TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 : TUN_F_CSUM;
    if (ioctl(tun, TUNSETVNETHDRSZ, &header) || ioctl(tun, TUNSETOFFLOAD, features))
        fail("TUNSETOFFLOAD");
    /* As many packets as wait while this process is not on a processor. */
    request.ifr_qlen = 5000;
    int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (any < 0 || ioctl(any, SIOCSIFTXQLEN, &request))
        fail("SIOCSIFTXQLEN");
    close(any);
    return tun;
}

/* Room for the largest packet at the ring's head, in one piece; NULL if there is none. */
static struct packet *room(struct way *way) {
    uint64_t at = way->head % way->capacity, needed = sizeof(struct packet) + LARGEST,
             rest = way->capacity - at;
    uint64_t skipped = rest < needed ? rest : 0;
    if (way->head + skipped + needed - way->tail > way->capacity)
        return NULL;
    if (skipped) {
        if (rest >= sizeof(struct packet))
            ((struct packet *)(way->ring + at))->skip = 1;
        way->head += skipped;
    }
    return (struct packet *)(way->ring + way->head % way->capacity);
}

/* The packet that is due next; NULL if there is none. */
static struct packet *next(struct way *way) {
    while (way->tail != way->head) {
        uint64_t at = way->tail % way->capacity, rest = way->capacity - at;
        struct packet *packet = (struct packet *)(way->ring + at);
        if (rest >= sizeof *packet && !packet->skip)
            return packet;
        way->tail += rest;
    }
    return NULL;
}

static uint64_t rounded(uint64_t size) {
    return (size + sizeof(struct packet) + 15) / 16 * 16;
}

static int is_lost(struct link *link) {
    return link->loss > 0 && (double)(next_random(&link->seed) >> 11) / 9007199254740992.0 < link->loss;
}

/* Take what has come. Whether there may be more. */
static int take(struct way *way, struct link *link) {
    for (int i = 0; i < AT_ONCE; i++) {
        struct packet *packet = room(way);
        if (!packet)
            return 0;
        ssize_t size = read(way->from, packet + 1, LARGEST);
        if (size <= 0)
            return 0;
        uint64_t now = now_ns(), bytes = (uint64_t)size - sizeof(struct virtio_net_hdr) + HEADERS,
                 leaves = now;
        if (is_lost(link)) {
            way->dropped++;
            continue;
        }
        if (link->rate) {
            uint64_t begin = way->free_at > now ? way->free_at : now;
            if ((double)(begin - now) * (double)link->rate / 1e9 > (double)link->queue) {
                way->dropped++;
                continue;
            }
            leaves = way->free_at = begin + (uint64_t)((double)bytes * 1e9 / (double)link->rate);
        }
        packet->due = leaves + link->delay;
        packet->size = (uint32_t)size;
        packet->skip = 0;
        way->head += rounded((uint64_t)size);
    }
    return 1;
}

/* Hand over what is due. When the next one is; 0 if there is none. */
static uint64_t give(struct way *way) {
    for (struct packet *packet; (packet = next(way)); way->tail += rounded(packet->size)) {
        if (packet->due > now_ns())
            return packet->due;
        if (write(way->to, packet + 1, packet->size) < 0)
            way->dropped++;
    }
    return 0;
}

static void run(struct way ways[2], struct link *link) {
    for (;;) {
        int more = 0;
        uint64_t due = 0;
        for (int i = 0; i < 2; i++) {
            more |= take(&ways[i], link);
            uint64_t next_due = give(&ways[i]);
            if (next_due && (!due || next_due < due))
                due = next_due;
        }
        if (more)
            continue;
        struct pollfd events[2] = {{.fd = ways[0].from, .events = POLLIN},
                                   {.fd = ways[1].from, .events = POLLIN}};
        uint64_t now = now_ns();
        if (due && due <= now + SPIN_NS)
            continue;
        uint64_t sleep = due ? due - now - SPIN_NS : 0;
        struct timespec time = {(time_t)(sleep / 1000000000u), (long)(sleep % 1000000000u)};
        /* A full ring leaves its packets in the device's queue: waiting for them would not wait. */
        for (int i = 0; i < 2; i++)
            if (!room(&ways[i]))
                events[i].events = 0;
        ppoll(events, 2, due ? &time : NULL, NULL);
    }
}

static double setting(const char *word, const char *name) {
    size_t length = strlen(name);
    if (strncmp(word, name, length) || word[length] != '=') {
        fprintf(stderr, "relay: %s where %s=... is expected\n", word, name);
        exit(2);
    }
    return strtod(word + length + 1, NULL);
}

int main(int argc, char **argv) {
    if (argc != 8)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1);
    struct link link = {.delay = (uint64_t)(setting(argv[4], "rtt") / 2),
                        .rate = (uint64_t)setting(argv[5], "rate"),
                        .loss = setting(argv[6], "loss"),
                        .queue = (uint64_t)setting(argv[7], "queue"),
                        .seed = now_ns() | 1};
    uint64_t flying = (uint64_t)((double)link.rate * (double)link.delay / 1e9);
    uint64_t capacity = link.rate ? link.queue + flying + flying / 4 + SLACK : ENDLESS;
    struct way ways[2] = {{.capacity = capacity / 16 * 16}, {.capacity = capacity / 16 * 16}};
    for (int i = 0; i < 2; i++) {
        ways[i].from = open_device(argv[1 + i], argv[3], link.loss == 0);
        ways[i].ring =
            mmap(NULL, ways[i].capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (ways[i].ring == MAP_FAILED)
            fail("mmap");
    }
    ways[0].to = ways[1].from;
    ways[1].to = ways[0].from;
    /* Without it the link is a little less even; that is all. */
    sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
    if (write(1, "ready\n", 6) != 6)
        return 1;
    run(ways, &link);
}
