# In a pod with one process namespace: looks into every process that comes, as early as it can.
import os
own = set(os.listdir("/proc"))
told = set()
print("ready", flush=True)
def tell(*words):
    if words not in told: told.add(words); print(*words, flush=True)
looked = 0
while True:
    for process in os.listdir("/proc"):
        if process in own or not process.isdigit(): continue
        looked += 1
        if looked in (1, 100): print("looked", looked, flush=True)
        place = "/proc/" + process
        try:
            program = os.readlink(place + "/exe")
            # The image's program has the streams that it was given; whatever else is open is the runtime's.
            for number in os.listdir(place + "/fd"):
                if int(number) > 2 and "busybox" not in program: tell("descriptor", os.readlink(place + "/fd/" + number), "OPEN")
            if "carob" in program: tell("program", program, "OPEN")
            if "SEALED" in open(place + "/environ").read(): tell("environment", "OPEN")
        except OSError: pass
        try: os.close(os.open(place + "/mem", os.O_RDWR)); "busybox" in program or tell("memory of", program, "OPEN")
        except (OSError, NameError): pass
