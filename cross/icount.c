/* QEMU plugin: the guest's instructions between the entries of bench_begin() and bench_end(), and in all.
 *
 * cc -shared -fPIC -O2 -DAPI=1 -o libicount.so icount.c      (API 1: QEMU 7.2; API 4: QEMU 10)
 * The declarations are QEMU's plugin interface, so that neither its headers nor its source are needed. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define PUBLIC __attribute__((visibility("default")))
typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int,
                                                   void *);

PUBLIC int qemu_plugin_version = API;
static uint64_t total, begun_at;
/* A function that lies across the end of a page is two blocks: the first of each counts. */
static int is_begun;

static void one(unsigned cpu, void *data) { total++; }
static void begin(unsigned cpu, void *data) {
    total++;
    if (!is_begun) begun_at = total;
    is_begun = 1;
}
static void end(unsigned cpu, void *data) {
    if (is_begun) fprintf(stderr, "insns %llu\n", (unsigned long long)(total - begun_at));
    is_begun = 0;
    total++;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
    size_t count = qemu_plugin_tb_n_insns(block);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
        /* A function begins a block: it is jumped to. */
        const char *symbol = i == 0 ? qemu_plugin_insn_symbol(insn) : NULL;
        void (*callback)(unsigned, void *) = one;
        if (symbol && !strcmp(symbol, "bench_begin")) callback = begin;
        if (symbol && !strcmp(symbol, "bench_end")) callback = end;
        qemu_plugin_register_vcpu_insn_exec_cb(insn, callback, 0, NULL);
    }
}

static void finish(plugin_id id, void *data) { fprintf(stderr, "total %llu\n", (unsigned long long)total); }

PUBLIC int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finish, NULL);
    return 0;
}
