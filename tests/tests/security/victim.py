# Has one of everything that processes share by name or number, then waits.
import ctypes, os, platform, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
add_key = {"x86_64": 248, "aarch64": 217}[platform.machine()]
word = b"the-victims-own"
address = socket.socket(socket.AF_UNIX); address.bind("\0victim"); address.listen()
loopback = socket.socket(); loopback.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
loopback.bind(("127.0.0.1", 4040)); loopback.listen()
open("/dev/shm/victim", "wb").write(word)
open("/tmp/victim", "wb").write(word); os.chmod("/tmp/victim", 0o666)
shm = libc.shmget(0x5EC, 4096, 0o1666)
assert shm >= 0 and libc.msgget(0x5EC, 0o1666) >= 0 and libc.semget(0x5EC, 1, 0o1666) >= 0
libc.mq_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
assert libc.mq_open(b"/victim", os.O_CREAT | os.O_RDWR, 0o666, None) >= 0
# The thread's, the process's, the session's, the user's, the user's default session's. Filters may refuse.
keys = {name: libc.syscall(add_key, b"user", b"victim-" + name.encode(), word, len(word), ring)
        for name, ring in (("session", -3), ("user", -4), ("user-session", -5))}
# Users' keyrings outlive their processes.
for key in keys.values(): libc.syscall({"x86_64": 250, "aarch64": 219}[platform.machine()], 15, key, 600)
print("keys", " ".join(name for name, key in keys.items() if key >= 0), flush=True)
print("ready", flush=True)
while True: time.sleep(1)
