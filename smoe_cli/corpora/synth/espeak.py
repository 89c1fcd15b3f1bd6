"""Say one text with espeak-ng: `python espeak.py VOICE WORDS_PER_MINUTE TEXT`, 16-bit samples at 22,050 Hz to stdout.

A process of its own for every text, for espeak-ng carries oscillator state from one text into the next, even across
its own re-initialisation: only a fresh process gives the same samples for the same text.
"""

from __future__ import annotations

import ctypes
import sys

AUDIO_OUTPUT_SYNCHRONOUS = 2
DONT_EXIT_ON_ERROR = 0x8000
POSITION_CHARACTER = 1
CHARS_UTF8 = 1
PARAMETER_RATE = 1


def main(voice: str, words_per_minute: str, text: str) -> None:
    """Write the samples of one text."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())

    def receive(samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            sys.stdout.buffer.write(ctypes.string_at(samples, 2 * count))
        return 0

    # Kept in a variable: the library calls it later, when Python must still hold it.
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(receive)
    data = espeakng_loader.get_data_path().encode()
    if library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, DONT_EXIT_ON_ERROR) != 22050:
        sys.exit("espeak-ng did not start at 22,050 Hz")
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()):
        sys.exit(f"espeak-ng has no voice `{voice}`")
    library.espeak_SetParameter(PARAMETER_RATE, int(words_per_minute), 0)
    utf8 = text.encode()
    if library.espeak_Synth(utf8, ctypes.c_size_t(len(utf8) + 1), 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None):
        sys.exit("espeak-ng could not synthesize the text")


if __name__ == "__main__":
    main(*sys.argv[1:])
