# What runs in QEMU's machine while `sterna bench dirty` migrates it: it writes one word of so many pages in
# every millisecond, in blocks of 32 neighbours that are far apart, as the workload of our own guests does it,
# and sleeps otherwise. Each word is the number of the write, so a page that lost one shows an old number.
# The host talks to it by memory: see PARAMETERS, and sterna_interop.qemu_writer.
#
# Built by:  as --32 -o writer.o writer.S && ld -m elf_i386 -Ttext=0x100000 --oformat binary -o writer.bin writer.o

        .intel_syntax noprefix
        .set PARAMETERS, 0x200000       # go, first byte, mask of blocks, stride, pages a tick * 256, count, rest
        .set IDT, 0x1e0000
        .set STACK, 0x1f0000
        .set TICK, 1193                 # of the timer's 1193182 a second

        .globl _start
_start:
header: .long 0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
        .long header, _start, end, end, entry

entry:  cli
        mov     esp, STACK
        lgdt    [gdt_pointer]
        ljmp    8, offset loaded
loaded: mov     eax, 16
        mov     ds, eax
        mov     es, eax
        mov     ss, eax

        mov     eax, offset tick        # the timer is interrupt 0x20
        mov     word ptr [IDT + 0x20 * 8], ax
        mov     word ptr [IDT + 0x20 * 8 + 2], 8
        mov     word ptr [IDT + 0x20 * 8 + 4], 0x8e00
        shr     eax, 16
        mov     word ptr [IDT + 0x20 * 8 + 6], ax
        lidt    [idt_pointer]

        mov     al, 0x11                # the interrupt controllers: everything off but the timer
        out     0x20, al
        mov     al, 0x20
        out     0x21, al
        mov     al, 4
        out     0x21, al
        mov     al, 1
        out     0x21, al
        mov     al, 0xfe
        out     0x21, al
        mov     al, 0xff
        out     0xa1, al

        mov     al, 0x34
        out     0x43, al
        mov     al, TICK & 0xff
        out     0x40, al
        mov     al, TICK >> 8
        out     0x40, al
        sti
sleep:  hlt
        jmp     sleep

tick:   pushad
        mov     ebx, PARAMETERS
        cmp     dword ptr [ebx], 1
        jne     done
        mov     ecx, [ebx + 24]         # a rest of less than a page stays for the next time
        add     ecx, [ebx + 16]
        movzx   eax, cl
        mov     [ebx + 24], eax
        mov     edx, [ebx + 20]
        shr     ecx, 8
        jz      done
write:  mov     eax, edx
        shr     eax, 5
        imul    eax, [ebx + 12]
        and     eax, [ebx + 8]
        shl     eax, 17
        mov     esi, edx
        and     esi, 31
        shl     esi, 12
        add     eax, esi
        add     eax, [ebx + 4]
        inc     edx
        mov     [eax], edx
        dec     ecx
        jnz     write
        mov     [ebx + 20], edx
done:   mov     al, 0x20
        out     0x20, al
        popad
        iretd

        .balign 8
gdt:    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
        .word 23
        .long gdt
idt_pointer:
        .word 0x21 * 8 - 1
        .long IDT
end:
