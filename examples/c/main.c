/* The protocol (docs/protocol.md): requests come as JSON, one a line, on standard input; replies go
 * to standard output; tensors travel as safetensors files.
 */
#include <stdlib.h>
#include <string.h>

#include "port.h"

typedef struct {
    Pool request;           /* emptied after every reply */
    Pool component;         /* emptied by unload */
    const Component *offer; /* what is loaded; NULL if nothing is */
    const void *loaded;
    char scratch[4096];
    double id; /* of the request; -1 while it is not known */
    bool over;
} Port;

/* ---- Requests -------------------------------------------------------------------------------- */

static void reply_ok(const Port *port, const char *ok) {
    printf("{\"id\":%.0f,\"ok\":%s}\n", port->id, ok);
}

static void hello(Port *port, const Json *request) {
    const char *scratch = as_string(member(request, "scratch"), "scratch");
    if (as_size(member(request, "protocol"), "protocol") != 1)
        FAIL("this port speaks version 1 of the protocol");
    if (strlen(scratch) >= sizeof port->scratch)
        FAIL("the path of the scratch folder is too long");
    strcpy(port->scratch, scratch);
    reply_ok(port, "{\"name\":\"c\",\"version\":\"1.1\",\"components\":[\"vae_decoder\","
                   "\"scheduler/ddpm\",\"scheduler/ddim\",\"scheduler/pndm\",\"scheduler/lms\","
                   "\"scheduler/euler\",\"scheduler/euler_ancestral\",\"scheduler/heun\","
                   "\"scheduler/dpmpp_2m\"],\"arithmetics\":[\"float32\",\"float64\"],"
                   "\"devices\":[\"cpu\"],\"probes\":true,\"replace\":true,\"echo\":true,"
                   "\"layout\":\"NCHW\",\"weights\":[\"diffusers\"],"
                   "\"details\":{\"language\":\"C11\"}}");
}

static const void *load_echo(Pool *component, Pool *request, const Json *message) {
    (void)component, (void)request, (void)message;
    return NULL;
}

static Tensors run_echo(Run *run) {
    return run->inputs;
}

static const Component echo = {load_echo, run_echo};

static const Component *find_component(const char *name) {
    if (strcmp(name, "echo") == 0)
        return &echo;
    if (strcmp(name, "vae_decoder") == 0)
        return &vae_decoder;
    if (strncmp(name, "scheduler/", strlen("scheduler/")) == 0)
        return &scheduler;
    FAIL("unknown component %s: this port has vae_decoder, schedulers and echo", name);
}

static void load(Port *port, const Json *request) {
    if (port->offer != NULL)
        FAIL("unload comes before the next load");
    const Component *offer = find_component(as_string(member(request, "component"), "component"));
    port->loaded = offer->load(&port->component, &port->request, request);
    port->offer = offer;
    reply_ok(port, "{}");
}

static void unload(Port *port) {
    empty(&port->component);
    port->offer = NULL;
    reply_ok(port, "{}");
}

static Tensors read_unless_null(Pool *pool, const Json *path, const char *what) {
    bool none = path != NULL && path->kind == 'n';
    return none ? (Tensors){0} : read_tensors(pool, as_string(path, what));
}

static void evaluate(Port *port, const Json *request) {
    Pool *pool = &port->request;
    if (port->offer == NULL || port->scratch[0] == 0)
        FAIL("hello and load come before run");
    const Json *inputs = member(request, "inputs");
    Run run = {.pool = pool, .loaded = port->loaded, .config = member(inputs, "config")};
    run.wanted = as_array(member(request, "probes"), "probes");
    for (const Json *name = run.wanted->first; name != NULL; name = name->next)
        as_string(name, "each of probes");
    run.inputs = read_unless_null(pool, member(inputs, "tensors"), "inputs.tensors");
    run.replacements = read_unless_null(pool, member(request, "replace"), "replace");
    Tensors outputs = port->offer->run(&run);
    write_tensors(text(pool, "%s/outputs.safetensors", port->scratch), &outputs);
    if (run.observed.first != NULL)
        write_tensors(text(pool, "%s/probes.safetensors", port->scratch), &run.observed);
    reply_ok(port, run.observed.first == NULL
        ? "{\"outputs\":\"outputs.safetensors\",\"probes\":null}"
        : "{\"outputs\":\"outputs.safetensors\",\"probes\":\"probes.safetensors\"}");
}

/* ---- The loop -------------------------------------------------------------------------------- */

/* Read a line from standard input; return NULL at its end. */
static char *read_line(Pool *pool, size_t *length) {
    size_t room = 4096;
    char *line = take(pool, room, 1);
    int byte = getchar();
    bool ended = byte == EOF;
    for (*length = 0; byte != EOF && byte != '\n'; byte = getchar()) {
        if (*length + 1 == room) {
            char *longer = memcpy(take(pool, 2 * room, 1), line, room);
            give_back(pool, line);
            line = longer;
            room *= 2;
        }
        if (*length <= MAX_TEXT) /* of a longer line the rest is skipped: it will be refused */
            line[(*length)++] = (char)byte;
    }
    line[*length] = 0;
    return ended ? NULL : line;
}

static void answer(Port *port) {
    size_t length;
    port->id = -1;
    char *line = read_line(&port->request, &length);
    port->over = line == NULL;
    if (port->over)
        return;
    const Json *request = read_json(&port->request, "the request", line, length);
    port->id = (double)as_size(member(request, "id"), "id");
    const char *op = as_string(member(request, "op"), "op");
    if (strcmp(op, "hello") == 0)
        hello(port, request);
    else if (strcmp(op, "load") == 0)
        load(port, request);
    else if (strcmp(op, "run") == 0)
        evaluate(port, request);
    else if (strcmp(op, "unload") == 0 || strcmp(op, "bye") == 0)
        unload(port);
    else
        FAIL("unknown op %s", op);
    port->over = strcmp(op, "bye") == 0;
}

static void refuse(Port *port) {
    if (port->id < 0)
        printf("{\"id\":null,\"%s\":", failure.key);
    else
        printf("{\"id\":%.0f,\"%s\":", port->id, failure.key);
    write_string(stdout, failure.reason);
    printf("}\n");
    if (port->offer == NULL) /* a load that failed leaves nothing behind */
        empty(&port->component);
}

int main(void) {
    static Port port; /* static: what lives on the stack may be lost in the jump of a failure */
    while (!port.over) {
        if (setjmp(failure.jump) == 0)
            answer(&port);
        else
            refuse(&port);
        empty(&port.request);
        if (fflush(stdout) != 0)
            return EXIT_FAILURE;
    }
    empty(&port.component);
    return EXIT_SUCCESS;
}
