-- Keeps the limits of one organisation: reserve, settle, renew, totals, each in one atomic step.
-- Time is this server's alone. What it decides is what memory_store.py decides; tests hold both
-- to one model. All keys carry the organisation's hash tag, so a call stays in one cluster slot.
-- Beware: `..` writes a number with 14 digits only; whatever may be longer stays a string.
--
-- KEYS[1]  totals       hash: ever reserved (r*), settled (s*), released (f*), lapsed (l*), in
--                       requests, tokens, cost; `now` the latest time seen, `mean` time of a hold
-- KEYS[2]  open holds   zset: "id requests tokens cost" by the moment when it is given up
-- KEYS[3]  a hold       string: "at requests tokens cost" and each rule's amount; or x: closed
-- KEYS[4]  and on, one for each rule:
--   sliding window      hash: amount by second, `total`, `oldest`, `newest` second
--   calendar window     hash: FIRST_DAY and u used, x spent, s when seeded, a alert told
--   seats               zset: id of a hold by the end of its lease
--
-- ARGV of reserve and settle: 1 operation, 2 id, 3 mode, 4 age, 5 ended (both ago), 6 lease,
-- 7 keep, 8 requests, 9 tokens, 10 cost, then five for each rule: kind, limit (reserve) or alert
-- (settle), amount, first day and amount of a seed ('' for none).

local SECOND, DAY = 1000000, 86400000000
local LIVE_S = 60                   -- a bucket counts for so many seconds after its own
local CLOSED_MS = 120000            -- a closed hold is remembered: a delayed command finds it so
local RETAIN_MS = 2 * 86400000      -- the totals of an organisation nobody uses
local AFTER_MS = 86400000           -- a calendar window beyond its end, for late settlements
local SEED_GRACE = 5 * SECOND       -- a usage row takes so long from the end to the ledger
local MAX_SWEPT = 100
local LEAST_WAIT, MOST_WAIT, COLD_WAIT = 100000, 60 * SECOND, SECOND
local DENIED, GRANTED, UNSEEDED, CLOSED, UNKNOWN = 0, 1, 2, 3, 4
local NEVER = -1

-- The clock may be set back: by up to a minute time stands still, beyond that it is believed.
local function read_clock()
  local t = redis.call('TIME')
  local now = t[1] * SECOND + t[2]
  local last = tonumber(redis.call('HGET', KEYS[1], 'now') or 0)
  if last >= now and last - now <= 60 * SECOND then return last end
  redis.call('HSET', KEYS[1], 'now', now)
  return now
end

local function retain()
  redis.call('PEXPIRE', KEYS[1], RETAIN_MS)
  redis.call('PEXPIRE', KEYS[2], RETAIN_MS)
end

local function count(what, requests, tokens, cost)
  if requests ~= 0 then redis.call('HINCRBY', KEYS[1], what .. 'r', requests) end
  if tokens ~= 0 then redis.call('HINCRBY', KEYS[1], what .. 't', tokens) end
  if cost ~= 0 then redis.call('HINCRBY', KEYS[1], what .. 'c', cost) end
end

-- What nobody settled in time was taken in full: its worker died.
local function sweep(now)
  local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, MAX_SWEPT)
  for _, member in ipairs(due) do
    local requests, tokens, cost = string.match(member, ' (%d+) (%d+) (%d+)$')
    redis.call('ZREM', KEYS[2], member)
    count('s', tonumber(requests), tonumber(tokens), tonumber(cost))
    count('l', tonumber(requests), tonumber(tokens), tonumber(cost))
  end
end

-- The state of a hold, nil where there is none; and its member among the open ones. What was swept
-- is closed, though its record is still there.
local function find(key, id)
  local record = redis.call('GET', key)
  if not record then return nil end
  if record == 'x' then return CLOSED end
  local member = id .. string.match(record, '^%d+( %d+ %d+ %d+)')
  if not redis.call('ZSCORE', KEYS[2], member) then return CLOSED end
  return record, member
end

-- ---- sliding windows -------------------------------------------------------------------------

local function open_window(key, second)
  local v = redis.call('HMGET', key, 'total', 'oldest', 'newest')
  local w = {key = key, total = 0, oldest = second, newest = second}
  if not v[1] then return w end
  local oldest, newest = tonumber(v[2]), tonumber(v[3])
  if newest > second or newest < second - LIVE_S then
    redis.call('DEL', key)
    return w
  end
  w.total, w.oldest, w.newest = tonumber(v[1]), oldest, newest
  if oldest < second - LIVE_S then
    local gone = {}
    for s = oldest, second - LIVE_S - 1 do gone[#gone + 1] = s end
    for _, amount in ipairs(redis.call('HMGET', key, unpack(gone))) do
      if amount then w.total = w.total - tonumber(amount) end
    end
    w.oldest = second - LIVE_S
    redis.call('HDEL', key, unpack(gone))
    redis.call('HSET', key, 'total', w.total, 'oldest', w.oldest)
  end
  return w
end

local function add_to_window(w, second, amount)
  local had = tonumber(redis.call('HGET', w.key, second) or 0)
  local has = math.max(had + amount, 0)
  if has == had then return end
  w.total = w.total + has - had
  w.oldest, w.newest = math.min(w.oldest, second), math.max(w.newest, second)
  redis.call('HSET', w.key, 'total', w.total, 'oldest', w.oldest, 'newest', w.newest, second, has)
  redis.call('PEXPIRE', w.key, (LIVE_S + 2) * 1000)
end

local function amounts_of(w)
  local seconds = {}
  for s = w.oldest, w.newest do seconds[#seconds + 1] = s end
  return redis.call('HMGET', w.key, unpack(seconds))
end

-- How long until `need` of the window has left.
local function left_in(w, need, now)
  local sum = 0
  for i, amount in ipairs(amounts_of(w)) do
    if amount then sum = sum + tonumber(amount) end
    if sum >= need then return (w.oldest + i + LIVE_S) * SECOND - now end
  end
end

-- How long until all of it has left.
local function empty_in(w, now)
  if w.total == 0 then return 0 end
  for s = w.newest, w.oldest, -1 do
    if tonumber(redis.call('HGET', w.key, s) or 0) > 0 then
      return (s + LIVE_S + 1) * SECOND - now
    end
  end
end

-- ---- calendar windows ------------------------------------------------------------------------

-- The day of its month, 1 to 31, of a day counted from 1970 (proleptic Gregorian calendar; the
-- arithmetic of civil_from_days, howardhinnant.github.io/date_algorithms.html).
local function day_of_month(day)
  local in_era = (day + 719468) % 146097
  local year = math.floor((in_era - math.floor(in_era / 1460) + math.floor(in_era / 36524)
    - math.floor(in_era / 146096)) / 365)
  local in_year = in_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  return in_year - math.floor((153 * math.floor((5 * in_year + 2) / 153) + 2) / 5) + 1
end

-- The first day of the window that holds a moment, and the first of the next one.
local function span(kind, at)
  local day = math.floor(at / DAY)
  if kind == 'd' then return day, day + 1 end
  if kind == 'w' then
    local monday = day - (day + 3) % 7
    return monday, monday + 7
  end
  local first = day - day_of_month(day) + 1
  local beyond = first + 31
  return first, beyond - day_of_month(beyond) + 1
end

-- Begins a window with what the ledger knows; of earlier ones the last is kept, for late refunds.
local function seed(key, kind, used, now)
  local first, next = span(kind, now)
  local fields, before = redis.call('HKEYS', key), nil
  for _, field in ipairs(fields) do
    local other = tonumber(string.sub(field, 1, -2))
    if other < first and (not before or other > before) then before = other end
  end
  for _, field in ipairs(fields) do
    if tonumber(string.sub(field, 1, -2)) ~= before then redis.call('HDEL', key, field) end
  end
  redis.call('HSET', key, first .. 'u', used, first .. 'x', used, first .. 's', now)
  redis.call('PEXPIRE', key, math.ceil((next * DAY - now) / 1000) + AFTER_MS)
end

-- Adds to the window that held the moment `at`; returns its first day, nil where it is not kept.
local function add_to_calendar(key, kind, at, amount, ended)
  local first = span(kind, at)
  local v = redis.call('HMGET', key, first .. 'u', first .. 's')
  if not v[1] then return nil end
  -- What ended well before the seed was taken is in the ledger, and so in the seed.
  if ended and ended + SEED_GRACE < tonumber(v[2]) then return nil end
  redis.call('HSET', key, first .. 'u', math.max(tonumber(v[1]) + amount, 0))
  return first
end

-- ---- operations ------------------------------------------------------------------------------

local function rule(i)
  local a = 10 + (i - 1) * 5
  return KEYS[i + 3], ARGV[a + 1], tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
end

-- Sees to it that each calendar window has begun; returns the reply that asks for what is missing.
local function seed_all(rules, now)
  local reply = {UNSEEDED, now}
  for i = 1, rules do
    local key, kind = rule(i)
    if kind ~= 's' and kind ~= 'l' then
      local first = span(kind, now)
      if redis.call('HEXISTS', key, first .. 'u') == 0 then
        if ARGV[10 + i * 5 - 1] == tostring(first) then
          seed(key, kind, ARGV[10 + i * 5], now)
        else
          reply[#reply + 1] = i - 1
          reply[#reply + 1] = first
        end
      end
    end
  end
  return #reply > 2 and reply or nil
end

-- Someone with a seat must be done first: the mean time of a hold, over those who have one.
local function seat_wait(taken)
  local mean = tonumber(redis.call('HGET', KEYS[1], 'mean') or 0)
  if mean == 0 then return COLD_WAIT end
  return math.max(LEAST_WAIT, math.min(math.floor(mean / taken), MOST_WAIT))
end

-- Where a rule stands: used, wait until `amount` more fits, reset; and its window.
local function stand(key, kind, limit, amount, now)
  local used, fits_in, reset, w = 0, nil, 0, nil
  if kind == 's' then
    w = open_window(key, math.floor(now / SECOND))
    used = w.total
  elseif kind == 'l' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    used = redis.call('ZCARD', key)
  else
    local first, next = span(kind, now)
    used, reset = tonumber(redis.call('HGET', key, first .. 'u') or 0), next * DAY - now
  end
  if amount == 0 or used + amount <= limit then return used, 0, reset, w end
  if amount > limit then return used, NEVER, reset, w end
  if kind == 's' then return used, left_in(w, used + amount - limit, now), reset, w end
  return used, kind == 'l' and seat_wait(used) or reset, reset, w
end

-- Mode `ask`, or `adopt`: takes in what was let in elsewhere, `age` ago, whatever the limits say.
local function reserve()
  local now, rules, mode = read_clock(), #KEYS - 3, ARGV[3]
  sweep(now)
  local known = find(KEYS[3], ARGV[2])
  if known == CLOSED then return {CLOSED, now} end
  local missing = seed_all(rules, now)
  if missing then return missing end
  local reply, windows, fits = {GRANTED, now}, {}, true
  for i = 1, rules do
    local key, kind, limit, amount = rule(i)
    local used, wait, reset, w = stand(key, kind, limit, known and 0 or amount, now)
    if wait ~= 0 then fits = false end
    reply[i * 3], reply[i * 3 + 1], reply[i * 3 + 2], windows[i] = used, wait, reset, w
  end
  if fits or mode == 'adopt' then
    if not known then
      local at, lease, keep = now - ARGV[4], tonumber(ARGV[6]), tonumber(ARGV[7])
      local record = {string.format('%.0f', at), ARGV[8], ARGV[9], ARGV[10]}
      for i = 1, rules do
        local key, kind, _, amount = rule(i)
        local second = math.floor(at / SECOND)
        if kind == 'l' then
          if amount > 0 then
            redis.call('ZADD', key, now + lease, ARGV[2])
            redis.call('PEXPIRE', key, math.ceil(lease / 1000))
          end
        elseif kind ~= 's' then
          add_to_calendar(key, kind, at, amount)
        elseif second >= math.floor(now / SECOND) - LIVE_S then
          add_to_window(windows[i], second, amount)
        end
        reply[i * 3], reply[i * 3 + 1] = reply[i * 3] + amount, 0
        record[i + 4] = ARGV[10 + i * 5 - 2]
      end
      redis.call('SET', KEYS[3], table.concat(record, ' '), 'PX', math.ceil((lease + 2 * keep) / 1000))
      redis.call('ZADD', KEYS[2], now + lease + keep,
        table.concat({ARGV[2], ARGV[8], ARGV[9], ARGV[10]}, ' '))
      count('r', tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]))
      retain()
    end
  else
    reply[1] = DENIED
  end
  for i = 1, rules do
    if windows[i] then reply[i * 3 + 2] = empty_in(windows[i], now) end
  end
  return reply
end

-- Notes what a calendar window has really spent; true once, when it reaches its alert.
local function spend(key, first, amount, alert)
  local spent = redis.call('HINCRBY', key, first .. 'x', amount)
  return alert > 0 and spent >= alert and redis.call('HSETNX', key, first .. 'a', 1) == 1
end

-- Mode `settle` or `release`; `charge` takes what an unknown hold has spent (its store was lost).
local function settle()
  local now, rules, id, mode = read_clock(), #KEYS - 3, ARGV[2], ARGV[3]
  local requests, tokens, cost = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
  sweep(now)
  local known, member = find(KEYS[3], id)
  if known == CLOSED then return {CLOSED, now} end
  if not known and mode == 'charge' then
    local missing = seed_all(rules, now)
    if missing then return missing end
  end
  redis.call('SET', KEYS[3], 'x', 'PX', CLOSED_MS)
  if not known and mode ~= 'charge' then return {UNKNOWN, now} end
  local had = {}
  for number in string.gmatch(known or '', '%d+') do had[#had + 1] = number end
  if known then redis.call('ZREM', KEYS[2], member) end
  local reply = {known and GRANTED or UNKNOWN, now}
  local at, ended = known and tonumber(had[1]) or now - ARGV[4], not known and now - ARGV[5]
  local this = math.floor(now / SECOND)
  for i = 1, rules do
    local key, kind, alert, amount = rule(i)
    local change, second = amount - (had[i + 4] or 0), math.floor(at / SECOND)
    if kind == 'l' then
      redis.call('ZREM', key, id)
    elseif kind ~= 's' then
      local first = add_to_calendar(key, kind, at, change, ended)
      if first and alert >= 0 and spend(key, first, amount, alert) then reply[#reply + 1] = i - 1 end
    elseif change ~= 0 and second >= this - LIVE_S then
      add_to_window(open_window(key, this), second, change)
    end
  end
  local held = {tonumber(had[2] or 0), tonumber(had[3] or 0), tonumber(had[4] or 0)}
  local function over(a, b) return math.max(a - b, 0) end
  count('r', over(requests, held[1]), over(tokens, held[2]), over(cost, held[3]))
  count('s', requests, tokens, cost)
  count('f', over(held[1], requests), over(held[2], tokens), over(held[3], cost))
  if known and mode ~= 'release' then
    local mean = tonumber(redis.call('HGET', KEYS[1], 'mean') or now - at)
    redis.call('HSET', KEYS[1], 'mean', mean + math.floor((now - at - mean) / 8))
  end
  retain()
  return reply
end

-- ARGV: renew, lease, keep, then id and number of seats of each hold; KEYS: the hold, its seats.
-- A lease that had lapsed is taken up again even above the limit: the request is there.
local function renew()
  local now, lease, keep = read_clock(), tonumber(ARGV[2]), tonumber(ARGV[3])
  local reply, k = {}, 3
  sweep(now)
  for a = 4, #ARGV, 2 do
    local id, seats = ARGV[a], tonumber(ARGV[a + 1])
    local known, member = find(KEYS[k], id)
    if member then
      redis.call('PEXPIRE', KEYS[k], math.ceil((lease + 2 * keep) / 1000))
      redis.call('ZADD', KEYS[2], now + lease + keep, member)
      for s = k + 1, k + seats do
        redis.call('ZADD', KEYS[s], now + lease, id)
        redis.call('PEXPIRE', KEYS[s], math.ceil(lease / 1000))
      end
    end
    reply[#reply + 1] = member and GRANTED or known or UNKNOWN
    k = k + seats + 1
  end
  retain()
  return reply
end

local function totals()
  sweep(read_clock())
  local sums = redis.call('HMGET', KEYS[1],
    'rr', 'rt', 'rc', 'sr', 'st', 'sc', 'fr', 'ft', 'fc', 'lr', 'lt', 'lc')
  return {sums, redis.call('ZRANGE', KEYS[2], 0, -1)}
end

local operations = {reserve = reserve, settle = settle, renew = renew, totals = totals}
return operations[ARGV[1]]()
