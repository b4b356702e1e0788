/*
 * feature: a socket with a filter of eBPF (SO_ATTACH_BPF)
 * refused: SO_ATTACH_BPF
 */
#include "check.h"
#include <linux/bpf.h>
#include <sys/socket.h>
#include <sys/syscall.h>

int main(int argc, char **argv) {
    struct bpf_insn instructions[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0xffff},
                                      {.code = BPF_JMP | BPF_EXIT}};
    union bpf_attr attributes = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
                                 .insn_cnt = COUNT(instructions),
                                 .insns = (uintptr_t)instructions,
                                 .license = (uintptr_t)"GPL"};
    int pair[2];
    check_start(argc, argv);
    SYS(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    int program = (int)SYS(syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof(attributes)));
    SYS(setsockopt(pair[1], SOL_SOCKET, SO_ATTACH_BPF, &program, sizeof(program)));
    close(program);
    check_move();
    check_write(pair[0], "hello", 5);
    check_expect(pair[1], "hello", 5);
    return check_passed();
}
