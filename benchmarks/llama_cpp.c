// Speed of a GGUF file with llama.cpp: prompts of PP tokens, then TG tokens one by one, split over the GPUs that it sees.
//
//     gcc -O2 llama_cpp.c -I INCLUDE -L LIBS -lllama -lggml -lggml-base -Wl,-rpath,LIBS -lm -o llama_cpp
//     ./llama_cpp MODEL LIBS none|layer|row|tensor PP TG REPETITIONS
//
// LIBS: the folder with llama.cpp's libraries and its backends. GGML_VK_VISIBLE_DEVICES=0,1 chooses GPUs. Prints two
// lines, "pp TOK_PER_S" and "tg TOK_PER_S", the means of all repetitions but the first, which warms up.
#include "ggml-backend.h"
#include "llama.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

static void only_errors(enum ggml_log_level level, const char *text, void *unused) {
    (void)unused;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

// Runs n random tokens from position `first` on, in one batch.
static void run(struct llama_context *context, int n_vocab, int first, int n) {
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i] = rand() % n_vocab;
        batch.pos[i] = first + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i == n - 1;
    }
    if (llama_decode(context, batch) != 0) {
        fprintf(stderr, "llama_decode failed\n");
        exit(1);
    }
    llama_batch_free(batch);
}

int main(int n_arguments, char **arguments) {
    if (n_arguments != 7) {
        fprintf(stderr, "usage: llama_cpp MODEL LIBS none|layer|row|tensor PP TG REPETITIONS\n");
        return 2;
    }
    int n_prompt = atoi(arguments[4]), n_generated = atoi(arguments[5]), n_runs = atoi(arguments[6]);
    if (n_prompt < 1 || n_prompt > 512 || n_generated < 1 || n_runs < 1) {
        fprintf(stderr, "PP is 1 to 512, TG and REPETITIONS are 1 or more\n");
        return 2;
    }
    static const struct { const char *name; enum llama_split_mode mode; } modes[] = {
        {"none", LLAMA_SPLIT_MODE_NONE},
        {"layer", LLAMA_SPLIT_MODE_LAYER},
        {"row", LLAMA_SPLIT_MODE_ROW},
        {"tensor", LLAMA_SPLIT_MODE_TENSOR},
    };
    struct llama_model_params model_params = llama_model_default_params();
    int is_known = 0;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(modes[i].name, arguments[3]) == 0) {
            model_params.split_mode = modes[i].mode;
            is_known = 1;
        }
    }
    if (!is_known) {
        fprintf(stderr, "%s is no way of splitting\n", arguments[3]);
        return 2;
    }
    llama_log_set(only_errors, NULL);
    ggml_backend_load_all_from_path(arguments[2]);
    llama_backend_init();
    model_params.n_gpu_layers = 999;
    struct llama_model *model = llama_model_load_from_file(arguments[1], model_params);
    if (model == NULL) return 1;
    struct llama_context_params context_params = llama_context_default_params();
    context_params.n_ctx = n_prompt + n_generated + 64;
    context_params.n_batch = context_params.n_ubatch = 512;
    context_params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    struct llama_context *context = llama_init_from_model(model, context_params);
    if (context == NULL) return 1;
    int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    double prompts = 0, generated = 0;
    for (int i = 0; i <= n_runs; i++) {
        llama_memory_clear(llama_get_memory(context), true);
        double start = seconds();
        run(context, n_vocab, 0, n_prompt);
        llama_synchronize(context);
        double middle = seconds();
        llama_memory_clear(llama_get_memory(context), true);
        double again = seconds();
        for (int at = 0; at < n_generated; at++) {
            run(context, n_vocab, at, 1);
            llama_synchronize(context);
        }
        double end = seconds();
        if (i > 0) {
            prompts += n_prompt / (middle - start);
            generated += n_generated / (end - again);
        }
    }
    printf("pp %.1f\ntg %.1f\n", prompts / n_runs, generated / n_runs);
    return 0;
}
