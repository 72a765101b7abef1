"""An entry script that tries to get out: each act by name, with what became of it. Run by test_confinement."""

from __future__ import annotations

import textwrap
from pathlib import Path

SOURCE = """
    import ctypes, os, resource, socket, subprocess
    SECRET, HOME, TARGET = {secret!r}, {home!r}, {target!r}
    PORT, UNIX, ABSTRACT, PARENT = {port}, {unix!r}, {abstract!r}, {parent}
    libc = ctypes.CDLL(None, use_errno=True)
    def check(*call):
        if libc.syscall(*call) < 0: raise OSError(ctypes.get_errno(), "denied")
    def inet(kind, family=socket.AF_INET): return socket.socket(family, kind)
    def forked():
        if os.fork() == 0: os._exit(0)
    ACTS = dict(
        read_the_agents_key=lambda: open(SECRET).read(),
        read_shadow=lambda: open("/etc/shadow").read(),
        read_passwd=lambda: open("/etc/passwd").read(),
        list_the_state=lambda: os.listdir(HOME),
        list_home=lambda: os.listdir("/root"),
        write_outside=lambda: open(TARGET, "w").write("x"),
        write_in_tmp=lambda: open("/tmp/mooring-hostile", "w").write("x"),
        write_in_the_slot=lambda: open("factor.txt", "w").write("x"),
        shared_memory_file=lambda: open("/dev/shm/mooring-hostile", "w").write("x"),
        delete_from_the_slot=lambda: os.unlink("factor.txt"),
        link_a_secret_into_the_slot=lambda: os.link(SECRET, "stolen"),
        loosen_the_key=lambda: os.chmod(SECRET, 0o777),
        make_a_device=lambda: os.mknod(TARGET, 0o600 | 0o020000, os.makedev(1, 1)),
        tcp_out=lambda: socket.create_connection(("127.0.0.1", PORT), 1),
        tcp_listen=lambda: inet(socket.SOCK_STREAM).bind(("127.0.0.1", 0)),
        udp_out=lambda: inet(socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", PORT)),
        udp6_out=lambda: inet(socket.SOCK_DGRAM, socket.AF_INET6),
        raw_packets=lambda: inet(socket.SOCK_RAW, socket.AF_PACKET),
        netlink=lambda: inet(socket.SOCK_RAW, socket.AF_NETLINK),
        vsock=lambda: inet(socket.SOCK_STREAM, 40),
        unix_socket=lambda: inet(socket.SOCK_STREAM, socket.AF_UNIX).connect(UNIX),
        abstract_socket=lambda: inet(socket.SOCK_STREAM, socket.AF_UNIX).connect(ABSTRACT),
        fork=forked,
        shell=lambda: subprocess.run(["/bin/sh", "-c", "true"], check=True),
        exec_self=lambda: os.execv("/bin/true", ["true"]),
        exec_from_memory=lambda: os.execv(f"/proc/self/fd/{{os.memfd_create('x')}}", ["x"]),
        kill_the_agent=lambda: os.kill(PARENT, 0),
        kill_everything=lambda: os.kill(-1, 0),
        signal_by_pidfd=lambda: os.pidfd_open(PARENT),
        ptrace_the_agent=lambda: check(101, 16, PARENT, 0, 0),
        read_the_agents_memory=lambda: open(f"/proc/{{PARENT}}/mem", "rb").read(1),
        copy_the_agents_memory=lambda: check(310, PARENT, None, 0, None, 0, 0),
        read_the_agents_environment=lambda: open(f"/proc/{{PARENT}}/environ", "rb").read(),
        limit_the_agent=lambda: resource.prlimit(PARENT, resource.RLIMIT_NOFILE, (1, 1)),
        raise_its_own_limits=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40)),
        mount=lambda: check(165, b"none", b"/tmp", b"tmpfs", 0, 0),
        unmount=lambda: check(166, b"/proc", 2),
        chroot=lambda: os.chroot("/"),
        new_user_namespace=lambda: check(272, 0x10000000),
        enter_a_namespace=lambda: check(308, 0, 0),
        become_another_user=lambda: os.setuid(12345),
        io_uring=lambda: check(425, 8, ctypes.create_string_buffer(256)),
        bpf=lambda: check(321, 0, ctypes.create_string_buffer(128), 128),
        userfaultfd=lambda: check(323, 0),
        kernel_keys=lambda: check(250, 0, -3, 0, 0, 0),
        load_a_kernel_module=lambda: check(313, 0, b"", 0),
        open_by_handle=lambda: check(304, -100, ctypes.create_string_buffer(64), 0),
        set_the_clock=lambda: check(227, 0, ctypes.create_string_buffer(16)),
        rename_the_host=lambda: socket.sethostname("x"),
        performance_counters=lambda: check(298, ctypes.create_string_buffer(128), 0, -1, -1, 0),
        kernel_log=lambda: check(103, 3, ctypes.create_string_buffer(16), 16),
        kernel_memory=lambda: open("/dev/mem", "rb").read(1),
        kernel_settings=lambda: open("/proc/sys/kernel/core_pattern").read(),
    )
    def attempt(act):
        try: act()
        except (OSError, ValueError, subprocess.SubprocessError) as error: return "denied"
        return "done"
    def init(): pass
    def predict(inputs): return {{"word": [name + " " + attempt(act) for name, act in ACTS.items()]}}
"""

# Act -> row of the table of attacks in the design's research: 45 is the script that tries to get out, 33 the file that
# is changed between being verified and being loaded.
ACTS = {
    "read_the_agents_key": 45, "read_shadow": 45, "read_passwd": 45, "list_the_state": 45, "list_home": 45,
    "write_outside": 45, "write_in_tmp": 45, "write_in_the_slot": 33, "shared_memory_file": 45,
    "delete_from_the_slot": 33, "link_a_secret_into_the_slot": 40, "loosen_the_key": 45, "make_a_device": 45,
    "tcp_out": 45, "tcp_listen": 45, "udp_out": 45, "udp6_out": 45, "raw_packets": 45, "netlink": 45, "vsock": 45,
    "unix_socket": 45, "abstract_socket": 45, "fork": 45, "shell": 45, "exec_self": 45, "exec_from_memory": 45,
    "kill_the_agent": 45, "kill_everything": 45, "signal_by_pidfd": 45, "ptrace_the_agent": 45,
    "read_the_agents_memory": 45, "copy_the_agents_memory": 45, "read_the_agents_environment": 45,
    "limit_the_agent": 45, "raise_its_own_limits": 46, "mount": 45, "unmount": 45, "chroot": 45,
    "new_user_namespace": 45, "enter_a_namespace": 45, "become_another_user": 45, "io_uring": 45, "bpf": 45,
    "userfaultfd": 45, "kernel_keys": 45, "load_a_kernel_module": 45, "open_by_handle": 45, "set_the_clock": 45,
    "rename_the_host": 45, "performance_counters": 45, "kernel_log": 45, "kernel_memory": 45, "kernel_settings": 45,
}  # fmt: skip


def source(folder: Path, port: int, abstract: str, parent: int) -> bytes:
    """The script, told where everything is that it is to steal."""
    text = textwrap.dedent(SOURCE).format(
        secret=str(folder / "device.key"), home=str(folder), target=str(folder / "new"), port=port,
        unix=str(folder / "endpoint.sock"), abstract=abstract, parent=parent,
    )  # fmt: skip
    return text.encode()
