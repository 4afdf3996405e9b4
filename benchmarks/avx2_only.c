/* Hides AVX-512, VNNI and AMX from a program and from all that it starts, so that one machine shows
 * what another would: every library chooses its kernels as on a CPU of 2013 to 2021 with AVX2.
 *
 *     make build/avx2_only.so
 *     LD_PRELOAD=$PWD/build/avx2_only.so python -m benchmarks.engine ...
 *
 * Needs x86-64 Linux and a CPU with CPUID faulting (`cpuid_fault` in /proc/cpuinfo); elsewhere the
 * program ends with status 70. Method: arch_prctl(ARCH_CPUID) makes the instruction CPUID fault, and
 * this handler of SIGSEGV answers in its place, without the bits below. Handlers that the program
 * sets are kept and called for every other fault. Frequency, caches and memory stay the machine's.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef ARCH_CPUID
#define ARCH_CPUID 0x1012
#endif
#define BIT(n) (1u << (n))

typedef int sigaction_function(int, const struct sigaction *, struct sigaction *);

static struct sigaction programs; /* what the program wants done */

static int real_sigaction(int number, const struct sigaction *new, struct sigaction *old)
{
    static sigaction_function *real;
    if (!real)
        real = (sigaction_function *)dlsym(RTLD_NEXT, "sigaction");
    return real(number, new, old);
}

static int let_cpuid(long allowed)
{
    return (int)syscall(SYS_arch_prctl, ARCH_CPUID, allowed);
}

/* Leaf 7 of CPUID: extended features. r: EAX, EBX, ECX, EDX. */
static void hide(unsigned subleaf, unsigned r[4])
{
    if (subleaf == 0) {
        /* AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL */
        r[1] &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
        /* VBMI, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ */
        r[2] &= ~(BIT(1) | BIT(6) | BIT(8) | BIT(9) | BIT(10) | BIT(11) | BIT(12) | BIT(14));
        /* 4VNNIW, 4FMAPS, VP2INTERSECT, AMX bf16, AVX-512 FP16, AMX tiles, AMX int8 */
        r[3] &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
    } else if (subleaf == 1) {
        /* AVX-VNNI, AVX-512 BF16, AMX FP16, AVX-IFMA */
        r[0] &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));
        /* AVX-VNNI int8, AVX-NE-CONVERT, AVX-VNNI int16, AVX10 */
        r[3] &= ~(BIT(4) | BIT(5) | BIT(10) | BIT(19));
    }
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)g[REG_RIP];

    if (info->si_code == SI_KERNEL && code[0] == 0x0f && code[1] == 0xa2) {
        unsigned leaf = (unsigned)g[REG_RAX], subleaf = (unsigned)g[REG_RCX], r[4];
        let_cpuid(1);
        __asm__ volatile("cpuid"
                         : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3])
                         : "a"(leaf), "c"(subleaf));
        let_cpuid(0);
        if (leaf == 7)
            hide(subleaf, r);
        g[REG_RAX] = r[0];
        g[REG_RBX] = r[1];
        g[REG_RCX] = r[2];
        g[REG_RDX] = r[3];
        g[REG_RIP] += 2;
    } else if (programs.sa_flags & SA_SIGINFO) {
        programs.sa_sigaction(number, info, context);
    } else if (programs.sa_handler != SIG_DFL && programs.sa_handler != SIG_IGN) {
        programs.sa_handler(number);
    } else {
        struct sigaction end = {.sa_handler = SIG_DFL};
        real_sigaction(SIGSEGV, &end, NULL);
        if (info->si_code <= 0) /* sent, not caused: it would not come again */
            raise(SIGSEGV);
    }
}

int sigaction(int number, const struct sigaction *new, struct sigaction *old)
{
    if (number != SIGSEGV)
        return real_sigaction(number, new, old);
    if (old)
        *old = programs;
    if (new)
        programs = *new;
    return 0;
}

sighandler_t signal(int number, sighandler_t handler)
{
    struct sigaction new = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
    return sigaction(number, &new, &old) ? SIG_ERR : old.sa_handler;
}

__attribute__((constructor)) static void start(void)
{
    struct sigaction ours = {
        .sa_sigaction = on_fault,
        .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK,
    };
    real_sigaction(SIGSEGV, &ours, &programs);
    if (let_cpuid(0)) {
        perror("this machine cannot hide instructions from a program (CPUID faulting)");
        _exit(70);
    }
}
