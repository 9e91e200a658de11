-- Plays prepared requests, each once: a signed one can't be sent twice. The file has
-- them one after another, each behind its length in digits and a line feed.
-- usage: wrk -t1 -c32 -d60s -s wrk.lua URL -- FILE RESPONSES

local file, left

function init(args)
    file = assert(io.open(args[1], "rb"))
    left = tonumber(args[2])
end

function request()
    left = left - 1
    if left == 0 then
        wrk.thread:stop()
    end
    local length = file:read("*n", "*l")
    if length == nil then
        -- More are asked for than were prepared while the thread comes to its end.
        return wrk.format("GET", "/healthz")
    end
    file:read(1)
    return file:read(length)
end

function done(summary)
    local errors = summary.errors
    local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
    io.write(string.format("\n{\"requests\": %d, \"seconds\": %.6f, \"failed\": %d}\n",
        summary.requests, summary.duration / 1e6, failed))
end
