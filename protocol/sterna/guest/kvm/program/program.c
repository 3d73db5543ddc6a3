/*
 * The program that every vCPU of the KVM guest runs: the self-auditing workload of spec/workload.md, on memory of
 * its own, for ever. It runs at the least privileged level and has no interrupts, no stack but a small one, and no
 * memory that it shares with another vCPU.
 *
 * An IN from DOORBELL asks the host how many pages to write next, and is where the host keeps it waiting. An OUT
 * to BEAT says that it has just written its first page after a gap: that is how the host learns when the guest
 * was back, whatever has held it up.
 *
 * State is kept where a migration could lose it. The workload's count, errors and four registers are in
 * general-purpose registers and nowhere else, and the host reads them there:
 *
 *     r15 count   r14 errors   rbx rbp r12 r13 registers 0 to 3
 *
 * It finds them there when it begins, too; layout.py has put them there.
 *
 * The compiler is kept away from SSE, AVX and the x87. They hold words that follow from the count at the last
 * look (AVX only where the host gives it to the guest), FS and GS point to pages that hold their own addresses, rounding is set to what nobody has by default, and the
 * time stamp counter is compared with itself. `look` checks all of it at every doorbell.
 *
 * A pause may fall between any two instructions. So that an audit can tell a page that is being written from a
 * torn one, words are stored in ascending order, then the registers step from 0 to 3, then the count.
 */
#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;

enum { DOORBELL = 0x510, BEAT = 0x514 };
enum { PAGE_WORDS = 512, XMM_WORDS = 16, LOOKS = XMM_WORDS + 5, WIDE_LOOKS = XMM_WORDS };
enum { WAITS = 256, WAITED_BITS = 48 }; /* as many as the host lets it write between two doorbells */
enum { MXCSR = 0x7f80, CONTROL_WORD = 0x0f7f }; /* all exceptions masked, round towards zero */

struct sweep { u64 first, blocks, stride, shift; };

/* At FS: layout.py fills it up to `other`, `wide` and `slow`, and reads the rest up to `waits`. */
struct area {
    u64 self;
    u64 seed, pages, hot_pages, zero_pages, block_pages, cold_every;
    u64 memory;             /* where its pages begin */
    u64 gap;                /* ticks of the time stamp counter after which it beats */
    u64 other;              /* what GS points to */
    u64 stamp;              /* the count at the last look */
    u64 checked, mismatches; /* registers looked at, and found to be wrong */
    u64 time, backwards;    /* the latest time stamp; how often the next one was smaller */
    u64 longest;            /* gap between two writes that no doorbell explains, in ticks */
    u64 asked, answered;    /* the time stamps around the latest doorbell, or the latest such gap */
    u64 wide;               /* whether it has AVX and may use it; set by layout.py */
    u64 slow;               /* ticks from which on it has waited for a page; set by layout.py */
    u64 waited;             /* how often since the last look */
    u64 waits[WAITS];       /* of each, writes since that look, and below WAITED_BITS the ticks */
    u64 mixed_seed;
    struct sweep hot, cold;
};

register u64 count __asm__("r15");
register u64 errors __asm__("r14");
register u64 register0 __asm__("rbx");
register u64 register1 __asm__("rbp");
register u64 register2 __asm__("r12");
register u64 register3 __asm__("r13");

#define STEP0 0x5851F42D4C957F2D, 0x14057B7EF767814F
#define STEP1 0x27BB2EE687B0B0FD, 0x9E3779B97F4A7C15
#define STEP2 0xD1342543DE82EF95, 0xBF58476D1CE4E5B9
#define STEP3 0x369DEA0F31A53F85, 0x94D049BB133111EB

static u64 mix(u64 z)
{
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static u64 gcd(u64 a, u64 b)
{
    while (b) {
        u64 rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static struct sweep sweep_over(u64 first, u64 blocks, u64 key)
{
    struct sweep s = {first, blocks, (blocks * 0x9E3779B9 >> 32) | 1, 0};
    while (blocks && gcd(s.stride, blocks) != 1) s.stride++;
    if (blocks) s.shift = mix(key) % blocks;
    return s;
}

static u64 base_of(const struct area *a, u64 page, u64 generation)
{
    return mix(a->mixed_seed + page * 0x9E3779B97F4A7C15 + generation * 0xD1B54A32D192ED03);
}

static u64 checksum_of(u64 page, u64 generation, u64 base)
{
    return page + 3 * generation + 0x3FFF7 * base + 0x5354524E574B4C44 + 0xE22C70C0A0A1C29B;
}

static void put_page(volatile u64 *p, u64 page, u64 generation, u64 base)
{
    p[0] = page;
    p[1] = generation;
    p[2] = checksum_of(page, generation, base);
    for (u64 i = 3; i < PAGE_WORDS; i++) p[i] = base + i * 0xBF58476D1CE4E5B9;
}

static int good_page(const u64 *p, u64 page, u64 generation, u64 base)
{
    u64 expected = checksum_of(page, generation, base);
    u64 sum = 0x5354524E574B4C44 - 5 * p[2]; /* the checksum's own word does not count */
    for (u64 i = 0; i < PAGE_WORDS; i++) sum += (2 * i + 1) * p[i];
    return p[0] == page && p[1] == generation && p[2] == expected && sum == expected;
}

static u64 register_at(u64 seed, u64 which, u64 multiplier, u64 increment, u64 steps)
{
    u64 m = 1, a = 0;
    for (; steps; steps >>= 1) {
        if (steps & 1) {
            m *= multiplier;
            a = a * multiplier + increment;
        }
        increment *= multiplier + 1;
        multiplier *= multiplier;
    }
    return mix(seed + which + 1) * m + a;
}

static void check_registers(const struct area *a)
{
    u64 right0 = register_at(a->seed, 0, STEP0, count), right1 = register_at(a->seed, 1, STEP1, count);
    u64 right2 = register_at(a->seed, 2, STEP2, count), right3 = register_at(a->seed, 3, STEP3, count);
    if (register0 != right0 || register1 != right1 || register2 != right2 || register3 != right3) errors++;
    register0 = right0;
    register1 = right1;
    register2 = right2;
    register3 = right3;
}

/* Whatever the compiler knows, it is done before and after this, not later or earlier. */
#define BARRIER()                                                                                            \
    __asm__ volatile(""                                                                                      \
                     : "+r"(count), "+r"(register0), "+r"(register1), "+r"(register2), "+r"(register3)       \
                     :                                                                                       \
                     : "memory")

static u64 step(u64 value, u64 multiplier, u64 increment)
{
    return value * multiplier + increment;
}

static u64 ticks(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}

/* The first access to a page is where it waits for one that comes later. Which ones did, the host can tell. */
static void reach(struct area *a, const volatile u64 *p)
{
    u64 began = ticks();
    (void)*p;
    u64 took = ticks() - began;
    if (took <= a->slow || a->waited >= WAITS) return;
    if (took >> WAITED_BITS) took = (1ul << WAITED_BITS) - 1;
    a->waits[a->waited++] = (count - a->stamp) << WAITED_BITS | took;
}

static void write_page(struct area *a)
{
    if (count % 65536 == 0) check_registers(a);
    u64 visit = count / a->block_pages;
    const struct sweep *s = &a->hot;
    if (a->cold_every) {
        u64 cold_visit = visit / a->cold_every;
        if (visit % a->cold_every == a->cold_every - 1) {
            s = &a->cold;
            visit = cold_visit;
        } else {
            visit -= cold_visit;
        }
    }
    u64 block = (visit % s->blocks * s->stride + s->shift) % s->blocks;
    u64 page = s->first + block * a->block_pages + count % a->block_pages;
    u64 generation = visit / s->blocks, *p = (u64 *)a->memory + page * PAGE_WORDS;
    reach(a, p);
    if (!good_page(p, page, generation, base_of(a, page, generation))) errors++;
    BARRIER();
    put_page(p, page, generation + 1, base_of(a, page, generation + 1));
    BARRIER();
    register0 = step(register0, STEP0);
    BARRIER();
    register1 = step(register1, STEP1);
    BARRIER();
    register2 = step(register2, STEP2);
    BARRIER();
    register3 = step(register3, STEP3);
    BARRIER();
    count++;
    BARRIER();
}

static u64 time_stamp(struct area *a)
{
    u64 now = ticks();
    if (now < a->time) a->backwards++;
    return now;
}

/* The time that has passed for it while something held it up; the host looks at it after a migration. */
static void held_up(struct area *a, u64 now)
{
    a->asked = a->time;
    a->answered = now;
}

/* Word number i of SSE after a look at this count. */
static u64 witness(const struct area *a, u64 stamp, u64 i)
{
    return mix(a->mixed_seed ^ mix(stamp + (i << 32)));
}

#define XMM(number)                                                                                          \
    do {                                                                                                     \
        u64 low, high;                                                                                       \
        __asm__ volatile("movq %%xmm" #number ", %0; psrldq $8, %%xmm" #number "; movq %%xmm" #number ", %1" \
                         : "=r"(low), "=r"(high));                                                           \
        bad += low != witness(a, a->stamp, 2 * (number - 8));                                                \
        bad += high != witness(a, a->stamp, 2 * (number - 8) + 1);                                           \
        put_xmm(number);                                                                                     \
    } while (0)

#define put_xmm(number)                                                                                      \
    __asm__ volatile("movq %0, %%xmm" #number "; movq %1, %%xmm7; punpcklqdq %%xmm7, %%xmm" #number          \
                     :                                                                                       \
                     : "r"(witness(a, count, 2 * (number - 8))), "r"(witness(a, count, 2 * (number - 8) + 1)))

/* Upper halves of the same registers, with witnesses of their own. SSE leaves them alone. */
#define WIDE(number)                                                                                         \
    do {                                                                                                     \
        u64 low, high;                                                                                       \
        __asm__ volatile("vextractf128 $1, %%ymm" #number ", %%xmm7; movq %%xmm7, %0; psrldq $8, %%xmm7; "   \
                         "movq %%xmm7, %1"                                                                   \
                         : "=r"(low), "=r"(high));                                                           \
        bad += low != witness(a, a->stamp, XMM_WORDS + 2 * (number - 8));                                    \
        bad += high != witness(a, a->stamp, XMM_WORDS + 2 * (number - 8) + 1);                               \
        put_wide(number);                                                                                    \
    } while (0)

#define put_wide(number)                                                                                     \
    __asm__ volatile("movq %0, %%xmm6; movq %1, %%xmm7; punpcklqdq %%xmm7, %%xmm6; "                         \
                     "vinsertf128 $1, %%xmm6, %%ymm" #number ", %%ymm" #number                               \
                     :                                                                                       \
                     : "r"(witness(a, count, XMM_WORDS + 2 * (number - 8))),                                 \
                       "r"(witness(a, count, XMM_WORDS + 2 * (number - 8) + 1)))

/* Whether all that the compiler does not use is as it was left, and new values for the next time. */
static void look(struct area *a)
{
    u64 bad = 0, fs, gs, st;
    u32 mxcsr;
    uint16_t control_word;
    XMM(8); XMM(9); XMM(10); XMM(11); XMM(12); XMM(13); XMM(14); XMM(15);
    if (a->wide) {
        WIDE(8); WIDE(9); WIDE(10); WIDE(11); WIDE(12); WIDE(13); WIDE(14); WIDE(15);
        a->checked += WIDE_LOOKS;
    }
    __asm__ volatile("movq %%fs:0, %0; movq %%gs:0, %1" : "=r"(fs), "=r"(gs));
    bad += (fs != a->self) + (gs != a->other);
    __asm__ volatile("stmxcsr %0; fnstcw %1; fistpll %2" : "=m"(mxcsr), "=m"(control_word), "=m"(st));
    bad += (mxcsr != MXCSR) + (control_word != CONTROL_WORD) + (st != a->stamp);
    a->stamp = count;
    a->waited = 0;
    __asm__ volatile("fildll %0" : : "m"(a->stamp));
    a->checked += LOOKS;
    a->mismatches += bad;
}

static void begin(struct area *a)
{
    u64 live = a->pages - a->zero_pages;
    u32 mxcsr = MXCSR;
    uint16_t control_word = CONTROL_WORD;
    a->mixed_seed = mix(a->seed);
    a->hot = sweep_over(0, a->hot_pages / a->block_pages, a->seed);
    a->cold = sweep_over(a->hot_pages, (live - a->hot_pages) / a->block_pages, ~a->seed);
    a->stamp = 0;
    put_xmm(8); put_xmm(9); put_xmm(10); put_xmm(11); put_xmm(12); put_xmm(13); put_xmm(14); put_xmm(15);
    if (a->wide) {
        put_wide(8); put_wide(9); put_wide(10); put_wide(11); put_wide(12); put_wide(13); put_wide(14);
        put_wide(15);
    }
    __asm__ volatile("fninit; ldmxcsr %0; fldcw %1; fildll %2" : : "m"(mxcsr), "m"(control_word), "m"(a->stamp));
    a->time = 0;
}

__attribute__((section(".text.start"), noreturn)) void _start(void)
{
    struct area *a;
    __asm__ volatile("movq %%fs:0, %0" : "=r"(a));
    begin(a);
    for (;;) {
        u32 pages, beat = 1;
        __asm__ volatile("inl %w1, %0" : "=a"(pages) : "d"(DOORBELL));
        look(a);
        u64 answered = time_stamp(a); /* what the host kept it waiting is no gap */
        held_up(a, answered);
        a->time = answered;
        for (; pages; pages--) {
            write_page(a);
            u64 now = time_stamp(a);
            if (now - a->time > a->gap) {
                held_up(a, now);
                __asm__ volatile("outl %0, %w1" : : "a"(beat), "d"(BEAT));
                if (now > a->time && now - a->time > a->longest) a->longest = now - a->time;
            }
            a->time = now;
        }
    }
}
