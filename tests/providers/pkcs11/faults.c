/* A PKCS#11 module for tests: the module named by FAULTS_MODULE, with faults. In the directory FAULTS_DIR the file `calls` gets
 * one line per call of the functions below; while `hang-NAME` exists the call waits; `fail-NAME` holds lines of return codes
 * in hex, one used per call. Only what PKCS#11 2.40 lays down: a function list is a version and pointers in fixed order. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong;
typedef ulong (*function)(ulong, ulong, ulong, ulong, ulong);
struct list {
    unsigned char major, minor;
    function functions[68];
};
static struct list ours;
static function real[68];

static ulong fault(const char *name) {
    char path[4096], line[64], rest[4096] = "";
    const char *dir = getenv("FAULTS_DIR");
    ulong code = 0;
    FILE *file;
    snprintf(path, sizeof path, "%s/calls", dir);
    if ((file = fopen(path, "a"))) {
        fprintf(file, "%s\n", name);
        fclose(file);
    }
    snprintf(path, sizeof path, "%s/hang-%s", dir, name);
    while (access(path, F_OK) == 0) usleep(5000);
    snprintf(path, sizeof path, "%s/fail-%s", dir, name);
    if ((file = fopen(path, "r"))) {
        if (fgets(line, sizeof line, file)) code = strtoul(line, NULL, 16);
        size_t len = fread(rest, 1, sizeof rest - 1, file);
        fclose(file);
        if (len == 0) {
            unlink(path);
        } else if ((file = fopen(path, "w"))) {
            fwrite(rest, 1, len, file);
            fclose(file);
        }
    }
    return code;
}

#define WRAP(index, name)                                                    \
    static ulong wrap_##name(ulong a, ulong b, ulong c, ulong d, ulong e) {  \
        ulong code = fault(#name);                                           \
        return code ? code : real[index](a, b, c, d, e);                     \
    }
WRAP(0, C_Initialize)
WRAP(4, C_GetSlotList)
WRAP(12, C_OpenSession)
WRAP(18, C_Login)
WRAP(29, C_EncryptInit)
WRAP(33, C_DecryptInit)
WRAP(34, C_Decrypt)

ulong C_GetFunctionList(struct list **out) {
    struct list *theirs;
    ulong (*get)(struct list **);
    void *library = dlopen(getenv("FAULTS_MODULE"), RTLD_NOW);
    if (!library || !(get = (ulong(*)(struct list **))dlsym(library, "C_GetFunctionList")) || get(&theirs)) return 5;
    ours = *theirs;
    memcpy(real, theirs->functions, sizeof real);
    ours.functions[0] = wrap_C_Initialize;
    ours.functions[4] = wrap_C_GetSlotList;
    ours.functions[12] = wrap_C_OpenSession;
    ours.functions[18] = wrap_C_Login;
    ours.functions[29] = wrap_C_EncryptInit;
    ours.functions[33] = wrap_C_DecryptInit;
    ours.functions[34] = wrap_C_Decrypt;
    *out = &ours;
    return 0;
}
